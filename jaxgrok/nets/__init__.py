"""The networks and their loss, and files of weights under this project's names and others'."""
