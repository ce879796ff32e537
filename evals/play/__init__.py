"""The playground: a model, a picture or prompt and methods, tried out in a browser."""
