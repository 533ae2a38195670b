//! Entities by REST, their changes as server-sent events.
