//! Everything that can be wrong with a CA, its files, what is imported, and a rotation's next step.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;

use super::rfc3339;
use super::rotation::Step;
use crate::addr::HostName;

/// What can go wrong with the CA.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{subtree:?} is no DNS name, so the CA cannot be constrained to it; write it like googleapis.com"
    )]
    Subtree { subtree: String },
    #[error(
        "no hosts to constrain the CA to; name at least one route's host, an unconstrained CA is not made"
    )]
    NoSubtrees,
    #[error("there is no CA in {}; make one with `tv-agent ca init`", .dir.display())]
    Missing { dir: PathBuf },
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} (mode {mode:04o}) can be written by others; keep the CA in a directory of its own, mode 0700",
        .path.display()
    )]
    DirectoryMode { path: PathBuf, mode: u32 },
    #[error("the private key {} has mode {mode:04o}; run `chmod 0600` on it, or mount the \
         Kubernetes secret with `defaultMode: 0400`", .path.display())]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("{} does not hold exactly one PEM certificate", .path.display())]
    NotACertificate { path: PathBuf },
    #[error("{} holds no chain of PEM certificates, {most} at most", .path.display())]
    NotAChain { path: PathBuf, most: usize },
    #[error("{} holds no private key that can be used (PEM, one key)", .path.display())]
    NotAKey { path: PathBuf, source: rcgen::Error },
    #[error("the private key {} is encrypted; decrypt it with `openssl pkey -in FILE -out FILE2`", .path.display())]
    KeyEncrypted { path: PathBuf },
    #[error(
        "the key of {} is {kind}, which too few clients verify; a CA needs P-256, P-384, or RSA of 2048 bits or more",
        .path.display()
    )]
    KeyKind { path: PathBuf, kind: String },
    #[error("the key {} does not belong to the certificate {}", .key.display(), .certificate.display())]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error(
        "{} is no CA certificate: it needs critical basic constraints with CA:TRUE and the key usage keyCertSign",
        .path.display()
    )]
    NotACa { path: PathBuf },
    #[error("the intermediate {} must have the path length 0: it signs leaves only", .path.display())]
    PathLength { path: PathBuf },
    #[error(
        "the intermediate {} has no critical name constraints with permitted DNS names, so its key could sign \
         for any host; issue a constrained one (`tv-agent ca init`)",
        .path.display()
    )]
    Unconstrained { path: PathBuf },
    #[error("{} is valid from {} only; check this node's clock", .path.display(), rfc3339(*.at))]
    NotYetValid { path: PathBuf, at: OffsetDateTime },
    #[error("{} expired at {}; issue a new one (`tv-agent ca init`)", .path.display(), rfc3339(*.at))]
    Expired { path: PathBuf, at: OffsetDateTime },
    #[error("{} was not issued by the root {}", .intermediate.display(), .root.display())]
    NotIssuedByRoot { intermediate: PathBuf, root: PathBuf },
    #[error("a TLS client would refuse what {} signs", .path.display())]
    Unusable { path: PathBuf, source: rustls::Error },
    #[error(
        "the root {} ends at {}, too soon to issue an intermediate; replace it by `tv-agent ca rotate`, or, once it has \
         ended, move {} away, run `tv-agent ca init` and distribute the new root",
        .path.display(), rfc3339(*.at), .path.parent().unwrap_or(.path).display()
    )]
    RootWornOut { path: PathBuf, at: OffsetDateTime },
    #[error(
        "{} stands without its root; copy the root's certificate to {}, or move the intermediate away to begin anew",
        .intermediate.display(), .root.display()
    )]
    RootMissing { root: PathBuf, intermediate: PathBuf },
    #[error(
        "a new intermediate is needed ({reason}), but the root's key is not at {}; put it there for the time of \
         `tv-agent ca init`, or issue the intermediate elsewhere and copy intermediate.pem and \
         intermediate-key.pem here",
        .path.display()
    )]
    RootKeyNeeded { reason: String, path: PathBuf },
    #[error("cannot make the {what}")]
    Make {
        what: &'static str,
        source: rcgen::Error,
    },
    #[error("TLS does not take the leaf key")]
    LeafKey { source: rustls::Error },
    #[error("the CA's name constraints do not cover {host}; run `tv-agent ca init` after adding a route")]
    NotPermitted { host: HostName },
    #[error("no route names {host}, so no certificate is made for it")]
    Refused { host: HostName },
    #[error("the CA expired at {}, so no certificate is made for {host}", rfc3339(*.at))]
    AuthorityExpired { host: HostName, at: OffsetDateTime },
    #[error("cannot make a certificate for {host}")]
    Mint { host: HostName, source: rcgen::Error },
    #[error("no certificate is made for {host}: {reason}")]
    Elsewhere { host: HostName, reason: String },
    #[error("no leaf for {host}")]
    NotMinted { host: HostName, source: Arc<Error> },
    #[error("a leaf for {host} was asked for with a public key that is not {wanted}")]
    ForeignKey { host: HostName, wanted: &'static str },

    // What is imported.
    #[error(
        "in {} the certificate of {subject} was not issued by the next one; a chain begins with the issuing CA and \
         goes up one by one", .path.display()
    )]
    BrokenChain { path: PathBuf, subject: String },
    #[error(
        "the root is missing: {} ends with a CA that {issuer} issued; put that root's certificate beside it as ca.crt",
        .path.display()
    )]
    NoRoot { path: PathBuf, issuer: String },
    #[error("{} holds a CA that another one issued ({issuer}); the root has to be self-signed", .path.display())]
    NotSelfSigned { path: PathBuf, issuer: String },
    #[error(
        "the CA in {} may issue no further CA (path length 0), and has no critical name constraints with permitted \
         DNS names: its key could sign for any host; give one with a path length of 1 or more, or a constrained one",
        .path.display()
    )]
    CannotIssue { path: PathBuf },
    #[error(
        "{}: the path length of {subject} leaves no room for the CAs below it, the node's intermediate included; give a \
         CA nearer to the root, or one with a greater path length", .path.display()
    )]
    TooDeep { path: PathBuf, subject: String },
    #[error("the name constraints of the CA in {} exclude the routed host {subtree}", .path.display())]
    Excludes { path: PathBuf, subtree: String },
    #[error(
        "{} comes under another root than {}; bring that in with `tv-agent ca rotate --from`, so that nothing breaks",
        .source_path.display(), .root.display()
    )]
    OtherRoot { source_path: PathBuf, root: PathBuf },

    // Rotation.
    #[error("{} is in use by another `tv-agent`; try again when it is done", .path.display())]
    Locked { path: PathBuf },
    #[error("{} is not what `tv-agent ca rotate` writes; restore it, or remove it if no rotation is under way", .path.display())]
    NotARotation {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("a rotation is under way ({step}); finish it with `tv-agent ca rotate` first")]
    RotationUnderWay { step: Step },
    #[error("the next root is chosen when a rotation begins, and one is under way ({step})")]
    RootChosen { step: Step },
    #[error(
        "the key of this CA is kept elsewhere, so the next root is yours to make: `tv-agent ca rotate --from DIR`, or \
         `--root-cert FILE --root-key FILE`"
    )]
    NextRootNeeded,
    #[error("the next root is the one that issues already")]
    SameRoot,
    #[error("meanwhile the rotation went on to {step}; look at `tv-agent ca show` and try again")]
    WentOn { step: Step },
}
