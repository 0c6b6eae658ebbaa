"""What the web page shows and does, without a widget in it: ``app.py`` only wires this up."""
