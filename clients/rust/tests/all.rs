//! What the conformance test cannot see, against the database that PG* names. One program, because linking is what takes the time.
mod client;
mod http;
mod leased;
mod world;
