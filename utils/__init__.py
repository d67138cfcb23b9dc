"""Small focused modules that the scripts share; import the module, not names from here."""
