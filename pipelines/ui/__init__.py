"""What the web page shows and does; ``pipelines/ui/page.py`` wires it to its widgets."""
