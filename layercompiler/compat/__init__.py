"""Other packages' names over this package's functions, so that code written for them runs by changing an import."""
