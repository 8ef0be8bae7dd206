//! One file per kind of hook. Each program is a shim: facts, verdict, effect.

mod connect;
mod handover;
mod ingress;
mod peername;
mod sendmsg;
