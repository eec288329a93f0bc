//! HTTP: the API, the pprof addresses, metrics and the page, for callers that may ask.
