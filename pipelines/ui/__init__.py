"""What the web page shows and does, without a widget in it: ``pipelines/ui/page.py`` only wires
this up."""
