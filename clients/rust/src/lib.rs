//! The PostgreSQL extension `idempotency` for tokio-postgres and hyper 0.14: its calls with typed outcomes (`client`), what to do about
//! an error (`errors`), connections and transactions (`pool`), what is recorded of an answer (`answer`), work that leaves the database
//! (`leased`), and the header `Idempotency-Key` for any framework (`http`) and for hyper (`service`).
mod answer; mod client; mod errors; mod http; mod leased; mod pool;
#[cfg(feature = "hyper")] mod service;
pub use crate::{answer::*, client::*, errors::*, http::*, leased::*, pool::*};
#[cfg(feature = "hyper")] pub use crate::service::*;
