"""What a person types: `fastmixer COMMAND`. One module a command, imported when it is called."""
