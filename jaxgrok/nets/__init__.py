"""The networks and their loss, and files of weights in this project's names and in others'."""
