"""The command line ``atlas-tool``: one thin module per command, each over one library operation."""
