"""What each command of the command line does; ``framework.cli`` imports only the one that is asked for."""
