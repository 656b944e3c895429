//! What to do about an error, however it is wrapped, and doing it again.
use std::{collections::hash_map::RandomState, error, fmt, future::Future, hash::{BuildHasher, Hasher}, io, iter, time::Duration};

/// Any error, so that a handler can use `?`. An `Answer` is one, too: it undoes the work, is sent, and is not recorded.
pub type Error = Box<dyn error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// Something that is done in a task, so it owns what it works with.
pub trait Doing<T>: Future<Output = Result<T>> + Send + 'static {}
impl<T, F: Future<Output = Result<T>> + Send + 'static> Doing<T> for F {}
/// Something that several tasks may use.
pub trait Shared: Send + Sync + 'static {}
impl<S: Send + Sync + 'static> Shared for S {}

macro_rules! wrappers { ($($name:ident)*) => { $(
    #[derive(Debug)] pub struct $name(pub Error);
    impl fmt::Display for $name { fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result { self.0.fmt(f) } }
    impl error::Error for $name { fn source(&self) -> Option<&(dyn error::Error + 'static)> { Some(&*self.0) } }
)* } }
wrappers! { NothingHappened NoConnection } // said by leased work: nobody was asked for anything; and by a pool

/// `TooLarge` is for good: never "try again". `Other` is a fault of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    StaleClaim, NotClaimed, OtherCompletion, LeftOpen, Held, Redacted, Retry, WaitTimeout, TooLarge, BadRequest, Unavailable, Other,
}

pub fn kind(error: &Error) -> Kind {
    match sqlstate(error).unwrap_or_default() {
        "IK001" => Kind::StaleClaim, "IK002" => Kind::NotClaimed, "IK003" => Kind::OtherCompletion, "IK004" => Kind::LeftOpen,
        "IK005" => Kind::Held, "IK006" => Kind::Redacted, "40001" | "40P01" => Kind::Retry, "55P03" => Kind::WaitTimeout,
        "54000" => Kind::TooLarge, "25006" | "53300" | "57P01" | "57P02" | "57P03" => Kind::Unavailable,
        state if state.starts_with("08") || state.is_empty() && is_lost(error) => Kind::Unavailable,
        state if state.starts_with("22") => Kind::BadRequest,
        _ => Kind::Other,
    }
}

// The first of this type among the error and its causes.
fn find<E: error::Error + 'static>(error: &Error) -> Option<&E> {
    iter::successors(Some(&**error as &(dyn error::Error + 'static)), |one| one.source()).find_map(|one| one.downcast_ref())
}
pub fn sqlstate(error: &Error) -> Option<&str> { find::<tokio_postgres::Error>(error)?.code().map(|state| state.code()) }
/// Of `StaleClaim`: taken_over, completed or forgotten. It travels as the name of a constraint.
pub fn reason(error: &Error) -> Option<&str> { find::<tokio_postgres::Error>(error)?.as_db_error()?.constraint() }

// Of the driver's errors without a SQLSTATE those of a connection, but not of a statement that it could not encode.
fn is_lost(error: &Error) -> bool {
    let driver = find::<tokio_postgres::Error>(error);
    let network = driver.and_then(|one| error::Error::source(one)?.downcast_ref::<io::Error>());
    let refused = network.map_or(false, |one| one.kind() != io::ErrorKind::InvalidInput);
    refused || driver.map_or(false, |one| one.is_closed()) || find::<NoConnection>(error).is_some()
}

/// Again after an error of one of these kinds, with growing pauses that rivals do not share.
pub async fn again<T, F: Future<Output = Result<T>>>(kinds: &[Kind], attempts: u32, call: impl Fn() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match call().await {
            Err(error) if attempt < attempts && kinds.contains(&kind(&error)) => attempt += 1,
            result => return result,
        }
        tokio::time::sleep(Duration::from_millis(10 + random() % (20 << attempt))).await;
    }
}

// The standard library's random keys, hashed: for pauses, and for a claim_id, which has to be unique and is no secret.
pub(crate) fn random() -> u64 { RandomState::new().build_hasher().finish() }

// In a task of its own: a panic is an error, and a caller that goes away leaves nothing half done.
pub(crate) async fn apart<T: Send + 'static>(work: impl Doing<T>) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|panic| Err(panic.into()))
}
