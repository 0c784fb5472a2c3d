"""Ray on this machine (and on Kubernetes), and the command line."""
