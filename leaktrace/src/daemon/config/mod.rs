//! What the administrator wrote: `/etc/leaktrace.toml`, read, checked and documented.
