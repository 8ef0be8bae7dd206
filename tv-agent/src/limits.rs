//! Every cap in one place. Each has a test that exceeds it.

use std::time::Duration;

/// Longest ClientHello (all records) that is read before the connection is refused, bytes.
pub const HELLO_BYTES: usize = 64 * 1024;
/// Time for the whole ClientHello to arrive.
pub const HELLO_TIME: Duration = Duration::from_secs(2);
/// Time for the client to finish the TLS handshake once we have answered.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// TCP connect to the origin.
pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// TLS (and HTTP/2 preface) towards the origin.
pub const UPSTREAM_HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Largest request header block, bytes.
pub const HEADER_BYTES: usize = 64 * 1024;
/// Most header fields in a request or response.
pub const HEADER_FIELDS: usize = 256;
/// Bytes of a refused request's body that are taken and thrown away before the answer.
pub const DISCARDED_BYTES: usize = 256 * 1024;
/// How long a refusal waits for them.
pub const DISCARD_TIME: Duration = Duration::from_millis(500);
/// Time for a request's header block to arrive, the wait for its first byte included: hyper's timer runs between
/// the requests of a kept connection as well, and clients expect to keep one for minutes.
pub const HEADER_TIME: Duration = Duration::from_secs(300);
/// Longest subject token that is looked at, bytes.
pub const SUBJECT_TOKEN_BYTES: usize = 16 * 1024;
/// Largest token response that is read, bytes.
pub const TOKEN_RESPONSE_BYTES: usize = 64 * 1024;
/// Whole token request, connect to last byte.
pub const TOKEN_TIME: Duration = Duration::from_secs(5);
/// Entries of the token cache, good and bad ones together.
pub const TOKEN_ENTRIES: u64 = 16 * 1024;
/// Longest time a provider token stays cached, whatever the vault says.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time a provider token stays cached when the vault says nothing.
pub const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(300);
/// A provider token is dropped this long before it expires.
pub const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// Longest provider token that is taken, bytes.
pub const PROVIDER_TOKEN_BYTES: usize = 16 * 1024;
/// Largest JSON answer that a route's purge rule looks at, bytes.
pub const PURGE_BODY_BYTES: usize = 64 * 1024;
/// Most keys of a key set.
pub const KEYS: usize = 16;
/// Time to fetch a key set, connect to last byte.
pub const KEYS_TIME: Duration = Duration::from_secs(5);
/// Exchanges that run at once, per vault.
pub const EXCHANGES_AT_ONCE: usize = 64;
/// Exchanges that run or wait for their turn, per vault; further ones are refused.
pub const EXCHANGES_QUEUED: usize = 2048;
/// Longest time that a vault's rate limit keeps us from calling it, whatever it says.
pub const RATE_LIMIT_WAIT: Duration = Duration::from_secs(60);
/// Leaf certificates kept.
pub const LEAVES: u64 = 4096;
/// Largest certificate bundle or file of a certificate directory that is copied for `exec`, bytes.
pub const TRUST_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// All files that are copied for one `exec` together, bytes; a usual store has 1 MiB.
pub const TRUST_BYTES: u64 = 64 * 1024 * 1024;
/// Most entries of a certificate directory that are copied for `exec`, subdirectories included.
pub const TRUST_ENTRIES: usize = 8192;
/// Connections served at once; further ones wait in the listen queue.
pub const CONNECTIONS: usize = 8192;
/// Connections of one workload (cgroup) served at once; further ones are reset, so that the others get theirs.
pub const CONNECTIONS_PER_WORKLOAD: usize = 2048;
/// Streams of one HTTP/2 client connection.
pub const H2_STREAMS: u32 = 256;
/// Flow-control window of one HTTP/2 stream, bytes: what one slow reader can make us hold.
pub const H2_WINDOW: u32 = 1024 * 1024;
/// Flow-control window of one HTTP/2 connection, bytes.
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// A tunnel, or a connection that switched its protocol, without a byte in either direction is closed after this.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
/// An upstream connection without a request is closed after this.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept per pool key.
pub const UPSTREAM_IDLE_PER_KEY: usize = 32;
/// Pool keys kept.
pub const UPSTREAM_KEYS: u64 = 4096;
/// Network namespaces served at once, besides the agent's own; each takes three descriptors.
pub const NAMESPACES: usize = 1024;
/// Cgroups looked at for network namespaces at once.
pub const DISCOVERY_CGROUPS: usize = 20_000;
/// Processes looked at for network namespaces at once.
pub const DISCOVERY_PROCESSES: usize = 64 * 1024;
/// Of the processes that are known, as many are looked at again each time.
pub const DISCOVERY_RECHECKS: usize = 2048;
/// Time to finish open requests when the agent is told to stop.
pub const DRAIN_TIME: Duration = Duration::from_secs(10);
