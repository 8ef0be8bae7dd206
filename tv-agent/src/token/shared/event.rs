//! What can happen with the shared cache: the closed list that is counted.

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another node's token was there.
    Hit,
    Miss,
    /// Another node's token came while this one waited for it.
    Awaited,
    /// It did not come in time; the vault is asked.
    GaveUp,
    Stored,
    /// A token that a provider refused was taken out.
    Removed,
    Flushed,
    /// Does not open under its name.
    Garbled,
    Expired,
    /// It comes from the future.
    Clock,
    /// The provider refused this very token a moment ago.
    Rejected,
    /// The vault's verifier does not believe it.
    Unvalidated,
    /// Too long to be stored.
    TooLong,
    /// There is no connection.
    Down,
    Late,
    Full,
    ReadOnly,
    /// Another error of the server.
    Refused,
    Broken,
    /// An answer of another form than the question's.
    Nonsense,
    /// Too much to do in the background.
    Dropped,
}

impl Event {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Awaited => "awaited",
            Self::GaveUp => "gave_up",
            Self::Stored => "stored",
            Self::Removed => "removed",
            Self::Flushed => "flushed",
            Self::Garbled => "garbled",
            Self::Expired => "expired",
            Self::Clock => "clock",
            Self::Rejected => "rejected",
            Self::Unvalidated => "unvalidated",
            Self::TooLong => "too_long",
            Self::Down => "down",
            Self::Late => "late",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Nonsense => "nonsense",
            Self::Dropped => "dropped",
        }
    }
}
