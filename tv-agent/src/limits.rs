//! Every cap in one place. Each has a test that exceeds it.

use std::time::Duration;

/// Longest ClientHello (all records) that is read before the connection is refused, bytes.
pub const HELLO_BYTES: usize = 64 * 1024;
/// Time for the whole ClientHello to arrive.
pub const HELLO_TIME: Duration = Duration::from_secs(2);
/// Time for the client to finish the TLS handshake once we have answered.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Largest file that the configuration names, itself included, bytes.
pub const FILE_BYTES: u64 = 4 * 1024 * 1024;
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
/// Tokens of our own that are kept, per vault and channel.
pub const SIGNED_TOKENS: u64 = 4096;
/// How long the same claims get the same token of ours.
pub const SIGNED_TTL: Duration = Duration::from_secs(60);
/// Time to fetch a key set, connect to last byte.
pub const KEYS_TIME: Duration = Duration::from_secs(5);
/// Largest form that is searched for the caller's client credentials, bytes.
pub const CREDENTIALS_BODY_BYTES: usize = 64 * 1024;
/// Longest client id or secret of a caller, bytes.
pub const CREDENTIAL_BYTES: usize = 4 * 1024;
/// Longest `claims` or `interaction_uri` of a token endpoint that is handed to the caller, bytes.
pub const INTERACTION_BYTES: usize = 4 * 1024;
/// Exchanges that run at once, per vault, unless it is configured.
pub const EXCHANGES_AT_ONCE: usize = 64;
/// Exchanges that run or wait for their turn, per vault; further ones are refused.
pub const EXCHANGES_QUEUED: usize = 2048;
/// Longest time that a vault's rate limit keeps us from calling it, whatever it says.
pub const RATE_LIMIT_WAIT: Duration = Duration::from_secs(60);
/// Lines of the audit trail that wait to be written, some 512 bytes each; further ones are counted as lost.
pub const AUDIT_LINES: usize = 8192;
/// When to try again while the audit trail cannot be written.
pub const AUDIT_RETRY: Duration = Duration::from_secs(5);
/// Spans that wait for the collector; further ones are dropped.
pub const SPANS: usize = 2048;
/// One export of spans, connect to last byte.
pub const SPAN_EXPORT_TIME: Duration = Duration::from_secs(5);
/// Largest answer of a collector that is read, bytes.
pub const SPAN_ANSWER_BYTES: usize = 64 * 1024;
/// Largest file of a CA that is read, bytes; a certificate with a hundred constraints has 5 KiB.
pub const CA_FILE_BYTES: u64 = 64 * 1024;
/// Most certificates of a chain between leaf and root.
pub const CA_CHAIN: usize = 4;
/// Longest time of one node's right to ask the vault for all, and so what a node that died costs the others.
pub const SHARED_LOCK: Duration = Duration::from_secs(3);
/// Longest time for a question to the shared cache that may be configured.
pub const SHARED_TIME_MAX: Duration = Duration::from_secs(1);
/// Connection to the shared cache, TLS and sign-in included; no request waits for it.
pub const SHARED_CONNECT_TIME: Duration = Duration::from_secs(2);
/// Commands that wait to be written to the shared cache.
pub const SHARED_QUEUED: usize = 256;
/// Commands to the shared cache that wait for their answers.
pub const SHARED_AT_ONCE: usize = 256;
/// Largest sealed token, bytes.
pub const SHARED_VALUE_BYTES: usize = 40 * 1024;
/// Keys of the shared cache, old ones included.
pub const SHARED_KEYS: usize = 4;
/// What one answer of the shared cache may take, bytes.
pub const SHARED_REPLY_BYTES: usize = SHARED_KEYS * SHARED_VALUE_BYTES + 64 * 1024;
/// Removals from the shared cache that are under way; further ones are left to time.
pub const SHARED_ERRANDS: usize = 64;
/// One question of a removal.
pub const SHARED_ERRAND_TIME: Duration = Duration::from_secs(1);
/// Parts of 500 names in which a whole shared cache is looked through to empty it.
pub const SHARED_FLUSH_STEPS: usize = 2000;
/// Leaf certificates kept.
pub const LEAVES: u64 = 4096;
/// Largest certificate bundle or file of a certificate directory that is copied for `exec`, bytes.
pub const TRUST_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// All files that are copied for one `exec` together, bytes; a usual store has 1 MiB.
pub const TRUST_BYTES: u64 = 64 * 1024 * 1024;
/// Most entries of a certificate directory that are copied for `exec`, subdirectories included.
pub const TRUST_ENTRIES: usize = 8192;
/// Processes of one mount namespace that are asked for what they read; further ones are not.
pub const TRUST_DWELLERS: usize = 64;
/// Stores of running processes that are looked after in one mount namespace, besides the system's.
pub const TRUST_EXTRA: usize = 64;
/// Mount namespaces (and roots in them) that are looked after.
pub const TRUST_PLACES: usize = 2048;
/// Longest of the files in /proc that tell what a process reads, bytes.
pub const TRUST_PROC_BYTES: u64 = 4 * 1024 * 1024;
/// Descriptors of one process that are looked at for its stores.
pub const TRUST_DESCRIPTORS: usize = 256;
/// Longest message between the agent and the helper that enters mount namespaces, bytes.
pub const TRUST_MESSAGE_BYTES: usize = 64 * 1024;
/// Time for the helper to answer; it is a matter of milliseconds.
pub const TRUST_HELPER_TIME: Duration = Duration::from_secs(10);
/// Longest list of mounts that is read, bytes; 100,000 mounts, the kernel's own limit, have some 10 MiB.
pub const MOUNTINFO_BYTES: u64 = 16 * 1024 * 1024;
/// Processes whose trust is remembered; the one that was seen longest ago goes first.
pub const TRUST_PROCESSES: usize = 4096;
/// How long a connection waits for the CA to be put into its process' mount namespace.
pub const TRUST_WAIT: Duration = Duration::from_secs(2);
/// A process that has shown that it does not trust the CA is refused for so long, unless what is installed changes.
pub const TRUST_PAUSE: Duration = Duration::from_secs(10);
/// A client that closes within this time after our certificate or the handshake, without a word, did not like it.
pub const TRUST_UNUSED: Duration = Duration::from_secs(5);
/// Processes that are looked at at once, to tell what runs in them.
pub const TRUST_READERS: usize = 4;
/// Sections of a program that are looked at; a usual one has 40.
pub const ELF_SECTIONS: usize = 4096;
/// Their names, bytes.
pub const ELF_NAMES_BYTES: usize = 256 * 1024;
/// As much of a process' memory map is looked at, bytes.
pub const MAPS_BYTES: u64 = 1024 * 1024;
/// Most roots that are installed at once; a replacement of a root has two or three.
pub const TRUST_ANCHORS: usize = 16;
/// Names looked at in one root for what runtimes bring along (Python packages, Java), directories listed included.
pub const TRUST_SEARCH: usize = 64 * 1024;
/// Most rounds of the hash over a PKCS #12 key store's password; Java itself refuses more.
pub const TRUST_KEYSTORE_ROUNDS: i32 = 5_000_000;
/// Time for a distribution's own tool to bring its stores up to date; Java's part of it takes some seconds.
pub const TRUST_TOOL_TIME: Duration = Duration::from_secs(120);
/// Largest record of what was changed in a root, bytes.
pub const TRUST_JOURNAL_BYTES: u64 = 16 * 1024 * 1024;
/// Largest file with the facts of one pod, bytes.
pub const POD_FACTS_BYTES: u64 = 64 * 1024;
/// Longest time between connect() and accept(): a record that is older was left by a connection that never came.
pub const RECORD_AGE: Duration = Duration::from_secs(30);
/// Connections served at once, where there are descriptors for them; further ones wait in the listen queue.
pub const CONNECTIONS: usize = 8192;
/// Of all connections served at once, one workload (cgroup) may have a part in so many; further ones are reset, so
/// that the others get theirs.
pub const SHARE_OF_WORKLOAD: usize = 4;
/// Streams of one HTTP/2 client connection.
pub const H2_STREAMS: u32 = 256;
/// Flow-control window of one HTTP/2 stream, bytes: what one slow reader can make us hold.
pub const H2_WINDOW: u32 = 1024 * 1024;
/// Flow-control window of one HTTP/2 connection, bytes.
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// A tunnel, or a connection that switched its protocol, without a byte in either direction is closed after this.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
/// Pipes for long tunnels, two descriptors each; beyond, bytes are copied.
pub const TUNNEL_PIPES: usize = 256;
/// A client that has said nothing for so long lets the origin be dialled meanwhile.
pub const EARLY_DIAL: Duration = Duration::from_millis(1);
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
/// Network namespaces looked at for connections that went past the agent, each time, besides the agent's own. The kernel
/// goes through its whole table for each: 2.3 ms where that has 262,144 rows.
pub const STRAY_NAMESPACES: usize = 32;
/// Connections to captured ports looked at in one namespace, each time.
pub const STRAY_CONNECTIONS: usize = 16 * 1024;
/// Descriptors of enrolled processes looked at for their sockets, each time.
pub const STRAY_DESCRIPTORS: usize = 64 * 1024;
/// Connections that went past the agent, remembered so that each is told once; further ones wait.
pub const STRAYS: usize = 16 * 1024;
/// Of those found at a time, as many are logged one by one.
pub const STRAYS_LOGGED: usize = 32;
/// Time to finish open requests and tunnels when the agent is told to stop, or has handed over; `listen.drain_seconds`
/// says otherwise.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);
/// Longest such time that may be asked for.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(3600);
/// The same where the last process of a network namespace is gone: no origin may keep a dead one alive.
pub const DESERTED_TIME: Duration = Duration::from_secs(10);
/// Time for a running agent to answer one that wants to take over; it is a matter of milliseconds.
pub const HANDOVER_ANSWER_TIME: Duration = Duration::from_secs(5);
/// Time for the new agent to get ready in between; then the running one goes on.
pub const HANDOVER_READY_TIME: Duration = Duration::from_secs(60);
/// Longest message of a hand-over, bytes.
pub const HANDOVER_BYTES: usize = 64 * 1024;
/// Largest configuration that is read, bytes.
pub const CONFIG_BYTES: u64 = 8 * 1024 * 1024;
/// Packets between the two processes of the daemon, bytes; what the warden says beyond that goes as a file.
pub const WIRE_INLINE_BYTES: usize = 64 * 1024;
/// The same for what no connection waits for: 8,192 addresses have 350 KB.
pub const WIRE_SLOW_BYTES: usize = 512 * 1024;
/// Largest such file.
pub const WIRE_BODY_BYTES: u64 = 64 * 1024 * 1024;
/// Questions of one process to the other that wait for their answers.
pub const WIRE_WAITING: usize = 16 * 1024;
/// Time for an answer that a connection waits for; it is a matter of microseconds.
pub const WIRE_TIME: Duration = Duration::from_secs(5);
/// Time for the others.
pub const WIRE_SLOW_TIME: Duration = Duration::from_secs(30);
/// Pods that are told of at once; with sixteen containers that are left alone, each has a kilobyte.
pub const WIRE_PODS: usize = 128;
/// Processes that are asked for at once.
pub const WIRE_PROCESSES: usize = 256;
/// Longest filter of the log that is taken, bytes.
pub const LOG_FILTER_BYTES: usize = 4 * 1024;
/// Time for the data path to build what a configuration needs; an RSA key of 4096 bits takes a second.
pub const PREPARE_TIME: Duration = Duration::from_secs(60);
/// Largest discovery document that is read, bytes (RFC 8414; a usual one has 4 KiB).
pub const DISCOVERY_BYTES: usize = 64 * 1024;
/// Largest JWKS that is read, bytes.
pub const JWKS_BYTES: usize = 256 * 1024;
/// Most keys of a JWKS, unusable ones included.
pub const JWKS_KEYS: usize = 64;
/// One whole fetch of a JWKS or discovery document, connect to last byte.
pub const METADATA_TIME: Duration = Duration::from_secs(5);
/// Shortest time between two fetches of one document, whoever asks.
pub const METADATA_FLOOR: Duration = Duration::from_secs(10);
/// How long a document is fresh when its server does not say.
pub const METADATA_FRESH: Duration = Duration::from_secs(900);
/// How long a document is fresh at most, whatever its server says.
pub const METADATA_FRESH_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a document that is no longer fresh is used while it cannot be fetched.
pub const METADATA_STALE: Duration = Duration::from_secs(3600);
/// Deepest nesting of objects and arrays in tokens, JWKS and answers of an issuer.
pub const JSON_DEPTH: usize = 16;
/// Largest introspection answer that is read, bytes.
pub const INTROSPECTION_BYTES: usize = 64 * 1024;
/// One introspection call, connect to last byte; a failed one is repeated once.
pub const INTROSPECTION_TIME: Duration = Duration::from_secs(5);
/// Introspections that run at once, per verifier.
pub const INTROSPECTIONS_AT_ONCE: usize = 64;
/// How long an answer that a token is active is believed: a revoked token is refused after this.
pub const INTROSPECTION_TTL: Duration = Duration::from_secs(60);
/// How long an answer that a token is not active is believed.
pub const INTROSPECTION_TTL_INACTIVE: Duration = Duration::from_secs(10);
/// Introspection answers kept, per verifier.
pub const INTROSPECTIONS_KEPT: u64 = 4096;
/// Verified JWTs kept, per verifier, bytes (estimated).
pub const VERIFIED_BYTES: u64 = 8 * 1024 * 1024;
/// How long a JWT's signature counts as verified, while the keys stay the same.
pub const VERIFIED_TTL: Duration = Duration::from_secs(300);
/// Latest time in a token, seconds since 1970 (the year 9999): beyond it is a mistake, milliseconds for instance.
pub const TOKEN_TIME_MAX: u64 = 253_402_300_799;
/// Identities that are counted by name.
pub const IDENTITIES: usize = 256;
/// Longest identity that is taken from a claim, characters.
pub const IDENTITY_CHARS: usize = 256;
/// Largest admission review, bytes; the API server takes no request of more than 3 MiB.
pub const WEBHOOK_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Reviews up to this size, bytes, do not wait for a turn; a usual pod has 8 KiB.
pub const WEBHOOK_SMALL_BYTES: usize = 64 * 1024;
/// Larger reviews that are read at once.
pub const WEBHOOK_LARGE_REVIEWS: usize = 16;
/// Reviews that are served at once; further ones are answered 503.
pub const WEBHOOK_REVIEWS: usize = 256;
/// Connections to the webhook at once; an API server needs one or two.
pub const WEBHOOK_CONNECTIONS: usize = 128;
/// Streams of one HTTP/2 connection to the webhook.
pub const WEBHOOK_STREAMS: u32 = 128;
/// TLS handshake of a connection to the webhook.
pub const WEBHOOK_HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Time for the first request after it.
pub const WEBHOOK_FIRST_TIME: Duration = Duration::from_secs(5);
/// Time for a review's body; the API server gives up after five seconds.
pub const WEBHOOK_BODY_TIME: Duration = Duration::from_secs(5);
/// A connection to the webhook without a request is closed after this; the API server closes its own after 90 s.
pub const WEBHOOK_IDLE_TIME: Duration = Duration::from_secs(120);
/// Time to write a ConfigMap while a pod waits.
pub const WEBHOOK_API_TIME: Duration = Duration::from_secs(3);
/// Namespaces whose ConfigMaps are remembered.
pub const WEBHOOK_NAMESPACES: usize = 64 * 1024;
/// Roots and bundle together, bytes; a ConfigMap has 1 MiB at most.
pub const WEBHOOK_CONTENT_BYTES: usize = 900 * 1024;
/// Time for open reviews when the webhook is told to stop.
pub const WEBHOOK_DRAIN_TIME: Duration = Duration::from_secs(10);

/// Pods of this node that are kept; the kubelet's own limit is 110 unless it is raised.
pub const PODS: usize = 1024;
/// Namespaces of the cluster of which our label is kept.
pub const NAMESPACES_KNOWN: usize = 16 * 1024;
/// What is kept of one pod, bytes; its labels, our annotations, its containers.
pub const POD_BYTES: usize = 16 * 1024;
/// Largest object of the API server in a watch, bytes; its own limit is some 3 MiB.
pub const API_OBJECT_BYTES: usize = 4 * 1024 * 1024;
/// Largest page of a list that is read, bytes; a page that is larger is asked for in smaller ones.
pub const API_PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Most that is read of a refusal of the API server, bytes.
pub const API_STATUS_BYTES: usize = 16 * 1024;
/// Largest file of credentials for the API server, bytes.
pub const API_CREDENTIAL_BYTES: u64 = 256 * 1024;
/// The API server's answer, from the look-up of its address to the header.
pub const API_ANSWER_TIME: Duration = Duration::from_secs(10);
/// One page of a list.
pub const API_PAGE_TIME: Duration = Duration::from_secs(30);
/// How long one watch is asked for.
pub const API_WATCH_TIME: Duration = Duration::from_secs(120);
/// Longest pause after failures of the API server, whatever it asks for.
pub const API_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often the credentials for the API server are read again.
pub const API_CREDENTIALS_TIME: Duration = Duration::from_secs(30);
/// Notes for Events that wait.
pub const EVENTS_QUEUED: usize = 256;
/// Events that are remembered, to be counted up.
pub const EVENTS: usize = 1024;

/// How many connections can be served with as many descriptors as `open_files`: each takes two, and some are kept back
/// for listeners, programs, the vault and kept upstream connections. At least [`SHARE_OF_WORKLOAD`].
pub const fn connections(open_files: u64) -> usize {
    const KEPT_BACK: u64 = 128;
    let rest = open_files.saturating_sub(KEPT_BACK + open_files / 8) / 2;
    if rest >= CONNECTIONS as u64 {
        CONNECTIONS
    } else if rest <= SHARE_OF_WORKLOAD as u64 {
        SHARE_OF_WORKLOAD
    } else {
        rest as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_the_descriptors() {
        assert_eq!(connections(20_000), CONNECTIONS);
        assert_eq!(connections(u64::MAX), CONNECTIONS);
        assert_eq!(connections(1024), 384);
        assert_eq!(connections(256), 48);
        assert_eq!(connections(0), SHARE_OF_WORKLOAD);
        for open_files in [300, 1024, 4096, 20_000, 1 << 20] {
            assert!(
                2 * connections(open_files) as u64 + 128 <= open_files,
                "{open_files}"
            );
        }
    }
}
