"""A hospital's series to a model and the results back, once each: `tomoray pacs CONFIG`."""
