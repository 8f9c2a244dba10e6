"""What a report shows, section by section: tables and figures made from results."""
