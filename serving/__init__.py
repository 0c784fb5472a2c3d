"""The Ray Serve application: `serve run serving.app:app run=RUN`."""
