//! A fleet under one vault's rate limit, played through on a virtual clock: `cargo xtask sim`.
//!
//! How long a token lives, when it is renewed, and what a node does by what lies in the shared cache are the agent's own
//! rules ([`tv_agent::token::rules`]); vault, network, Redis and workloads are models. No I/O, no real time: the same
//! seed gives the same table.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tv_agent::limits;
use tv_agent::token::rules::plan::{self, Found, Lock, Purpose, Step, Value};
use tv_agent::token::rules::{Life, Lived};

mod report;
mod world;

pub use report::{Phase, table};
use world::{Random, Vault};

/// When the fleet's life begins, as nodes' clocks show it.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// Between two attempts to renew one token, as in the agent.
const AGAIN: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

/// What is played.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub subjects: usize,
    /// Calls that the vault answers in a minute, for the whole tenant.
    pub limit: usize,
    /// What the vault says of its tokens' lives.
    pub expires_in: Duration,
    /// Mean time between two requests of one subject on one node.
    pub gap: Duration,
    /// Each of the three phases: nodes come up one after the other, then restart one after the other, then go on.
    pub phase: Duration,
    pub cache: Cache,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Each node by itself.
    None,
    Shared,
    /// Shared, and gone for the middle third of the restart.
    Failing,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 1000,
            subjects: 50,
            limit: 300,
            expires_in: Duration::from_secs(3600),
            gap: Duration::from_secs(300),
            phase: Duration::from_secs(1800),
            cache: Cache::None,
            seed: 1,
        }
    }
}

/// A token as a node holds it.
#[derive(Clone, Copy)]
struct Held {
    token: u64,
    lived: Lived,
    ends: Duration,
    refresh: Option<Duration>,
}

/// What one node does to get one token, and the requests that wait for it.
struct Flight {
    generation: u32,
    purpose: Purpose,
    began: Duration,
    looks: u32,
    insists: bool,
    has_lock: bool,
    /// The vault, or another node, was waited for.
    was_slow: bool,
    waiting: Vec<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Boot(usize),
    Restart(usize),
    Request(usize),
    /// A flight's question arrives at Redis.
    Look(usize),
    /// A flight's call arrives at the vault.
    Call(usize),
    /// And comes back with a token, or (None) with a refusal.
    Landed(usize, Option<u64>),
}

struct Node {
    is_up: bool,
    generation: u32,
    paused: Duration,
}

#[derive(Clone, Copy, Default)]
struct Shelf {
    value: Option<(u64, Lived)>,
    /// The flight that has the lock, and until when.
    lock: Option<(usize, Duration)>,
}

/// The fleet in the middle of the play. A pair is one subject on one node.
struct Fleet<'a> {
    plan: &'a Plan,
    random: Random,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    count: u64,
    nodes: Vec<Node>,
    held: Vec<Option<Held>>,
    tried: Vec<Duration>,
    flights: Vec<Option<Flight>>,
    shelves: Vec<Shelf>,
    vault: Vault,
    phases: [Phase; 3],
}

/// Plays `plan` to its end.
pub fn play(plan: &Plan) -> [Phase; 3] {
    let pairs = plan.nodes * plan.subjects;
    let mut fleet = Fleet {
        plan,
        random: Random::new(plan.seed),
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        count: 0,
        nodes: Vec::new(),
        held: vec![None; pairs],
        tried: vec![Duration::ZERO; pairs],
        flights: (0..pairs).map(|_| None).collect(),
        shelves: vec![Shelf::default(); plan.subjects],
        vault: Vault::new(plan.limit, plan.expires_in),
        phases: Default::default(),
    };
    for node in 0..plan.nodes {
        fleet.nodes.push(Node {
            is_up: false,
            generation: 0,
            paused: Duration::ZERO,
        });
        let turn = plan.phase.mul_f64(node as f64 / plan.nodes as f64);
        // All are up in a third of the first phase.
        fleet.at(turn / 3, Event::Boot(node));
        fleet.at(plan.phase + turn, Event::Restart(node));
    }
    while let Some(Reverse((time, _, event))) = fleet.events.pop() {
        if time >= plan.phase * 3 {
            break;
        }
        fleet.now = time;
        fleet.happen(event);
    }
    fleet.phases
}

impl Fleet<'_> {
    fn at(&mut self, time: Duration, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    fn soon(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Boot(node) => {
                self.nodes[node].is_up = true;
                for subject in 0..self.plan.subjects {
                    self.next_request(node * self.plan.subjects + subject);
                }
            }
            Event::Restart(node) => {
                // What it held is gone. Its requests are drained by the old one, or taken by the new one.
                self.nodes[node].generation += 1;
                self.nodes[node].paused = Duration::ZERO;
                let first = node * self.plan.subjects;
                self.held[first..first + self.plan.subjects].fill(None);
            }
            Event::Request(pair) => {
                self.next_request(pair);
                self.request(pair);
            }
            Event::Look(pair) => self.look(pair),
            Event::Call(pair) => self.call(pair),
            Event::Landed(pair, token) => self.landed(pair, token),
        }
    }

    fn next_request(&mut self, pair: usize) {
        let wait = self.random.exponential(self.plan.gap);
        self.soon(wait, Event::Request(pair));
    }

    fn phase(&mut self) -> &mut Phase {
        let index = (self.now.as_secs_f64() / self.plan.phase.as_secs_f64()) as usize;
        &mut self.phases[index.min(2)]
    }

    fn redis_answers(&self) -> bool {
        let into = self.now.checked_sub(self.plan.phase);
        let third = self.plan.phase / 3;
        match self.plan.cache {
            Cache::None => false,
            Cache::Shared => true,
            Cache::Failing => !into.is_some_and(|into| (third..third * 2).contains(&into)),
        }
    }

    fn request(&mut self, pair: usize) {
        let now = self.now;
        self.phase().requests += 1;
        let is_paused = self.nodes[pair / self.plan.subjects].paused > now;
        if let Some(held) = self.held[pair].filter(|held| held.ends > now) {
            let is_due = held.refresh.is_some_and(|at| at <= now) && self.tried[pair] + AGAIN <= now;
            if is_due && !is_paused && self.flights[pair].is_none() {
                self.tried[pair] = now;
                self.take_off(pair, Purpose::Renew);
            }
            return;
        }
        if is_paused && !self.redis_answers() && self.flights[pair].is_none() {
            self.phase().refused += 1;
            return;
        }
        if self.flights[pair].is_none() {
            self.take_off(pair, if is_paused { Purpose::Glance } else { Purpose::Need });
        }
        if let Some(flight) = &mut self.flights[pair] {
            flight.waiting.push(now);
        }
    }

    fn take_off(&mut self, pair: usize, purpose: Purpose) {
        self.flights[pair] = Some(Flight {
            generation: self.nodes[pair / self.plan.subjects].generation,
            purpose,
            began: self.now,
            looks: 0,
            insists: false,
            has_lock: false,
            was_slow: false,
            waiting: Vec::new(),
        });
        let wait = self.random.redis();
        self.soon(wait, Event::Look(pair));
    }

    /// One question to Redis, and what the agent's rules make of the answer.
    fn look(&mut self, pair: usize) {
        let (now, answers) = (self.now, self.redis_answers());
        let random = self.random.unit();
        let Some(flight) = &mut self.flights[pair] else {
            return;
        };
        if !answers {
            return self.soon(Duration::ZERO, Event::Call(pair));
        }
        let shelf = &mut self.shelves[pair % self.plan.subjects];
        let ours = self.held[pair].filter(|held| held.ends > now);
        let seen = shelf.value.map(|(token, lived)| {
            let seen = lived.seen(EPOCH + now, limits::TOKEN_TTL_MAX).ok()?;
            Some((token, lived, seen))
        });
        let value = match &seen {
            None => Value::Absent,
            Some(None) => Value::Useless,
            Some(Some((token, lived, _))) => {
                let found = Found {
                    is_refused: false,
                    is_ours: ours.is_some_and(|ours| ours.token == *token),
                    is_newer: ours.is_none_or(|ours| lived.expires > ours.lived.expires),
                    is_final: lived.is_final,
                };
                plan::judge(found, flight.purpose)
            }
        };
        let reaches = flight.purpose != Purpose::Glance && (flight.insists || seen.is_none());
        let lock = match shelf.lock.filter(|(_, until)| *until > now) {
            _ if !reaches => Lock::Untried,
            Some(_) => Lock::Theirs,
            None => {
                shelf.lock = Some((pair, now + limits::SHARED_LOCK));
                flight.has_lock = true;
                Lock::Ours
            }
        };
        let so_far = (now - flight.began, flight.looks);
        match plan::next((value, lock), flight.purpose, so_far, limits::TOKEN_TIME, random) {
            Step::Take => {
                if let Some(Some((token, lived, (age, life)))) = seen {
                    self.keep(pair, token, lived, age, life);
                }
                self.finish(pair, true);
            }
            Step::Leave => self.finish(pair, true),
            Step::Insist => {
                flight.insists = true;
                let wait = self.random.redis();
                self.soon(wait, Event::Look(pair));
            }
            Step::Wait(pause) => {
                flight.looks += 1;
                flight.was_slow = true;
                let wait = pause + self.random.redis();
                self.soon(wait, Event::Look(pair));
            }
            Step::Ask => self.soon(Duration::ZERO, Event::Call(pair)),
        }
    }

    /// Asks the vault, unless that wants to be left alone by this node.
    fn call(&mut self, pair: usize) {
        let now = self.now;
        if self.nodes[pair / self.plan.subjects].paused > now {
            return self.finish(pair, false);
        }
        if let Some(flight) = &mut self.flights[pair] {
            flight.was_slow = true;
        }
        let token = self.vault.call(now);
        self.phase().call(now, token.is_some());
        let latency = self.random.vault();
        self.soon(latency, Event::Landed(pair, token));
    }

    fn landed(&mut self, pair: usize, token: Option<u64>) {
        let now = self.now;
        let Some(token) = token else {
            // Until its minute is over, as its Retry-After says; never longer than the agent lets it.
            let wait = self.vault.retry_after(now).min(limits::RATE_LIMIT_WAIT);
            let node = &mut self.nodes[pair / self.plan.subjects];
            node.paused = node.paused.max(now + wait);
            return self.finish(pair, false);
        };
        let life = Life::of(
            Some(self.vault.expires_in),
            None,
            EPOCH + now,
            limits::TOKEN_TTL_DEFAULT,
            limits::TOKEN_TTL_MAX,
        );
        if let Some(life) = life {
            let lived = Lived {
                fetched: EPOCH + now,
                expires: EPOCH + now + life.ttl,
                is_final: life.is_final,
            };
            self.keep(pair, token, lived, Duration::ZERO, life);
            if self.redis_answers() {
                self.shelves[pair % self.plan.subjects].value = Some((token, lived));
            }
        }
        self.finish(pair, true);
    }

    fn keep(&mut self, pair: usize, token: u64, lived: Lived, age: Duration, life: Life) {
        let generation = self.nodes[pair / self.plan.subjects].generation;
        if self.flights[pair]
            .as_ref()
            .is_none_or(|flight| flight.generation != generation)
        {
            return;
        }
        let fetched = self.now.saturating_sub(age);
        self.held[pair] = Some(Held {
            token,
            lived,
            ends: self.now + life.ttl.saturating_sub(age),
            refresh: life.refresh_at(self.random.unit()).map(|at| fetched + at),
        });
    }

    /// The flight is over: those who waited are served, or refused; the lock is let go of.
    fn finish(&mut self, pair: usize, served: bool) {
        let now = self.now;
        let Some(flight) = self.flights[pair].take() else {
            return;
        };
        if flight.has_lock && self.redis_answers() {
            let shelf = &mut self.shelves[pair % self.plan.subjects];
            shelf.lock = shelf.lock.filter(|(owner, _)| *owner != pair);
        }
        let phase = self.phase();
        if !served {
            phase.refused += flight.waiting.len();
        } else if flight.was_slow {
            phase
                .waits
                .extend(flight.waiting.iter().map(|since| now - *since));
        }
    }
}

#[cfg(test)]
mod tests;
