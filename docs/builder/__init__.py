"""Builder of the documentation: cards of methods, drawings, links, reference pages."""
