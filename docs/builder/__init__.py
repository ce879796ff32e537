"""What the documentation is built with: cards of methods, drawings, links, reference pages."""
