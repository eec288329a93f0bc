//! Profiles sent to other systems: OTLP and Pyroscope, with retries and a bounded queue; and figures as Prometheus text.
