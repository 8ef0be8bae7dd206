//! What came of it, as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{Cache, MINUTE, Plan, play};

/// One third of the play.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    pub requests: usize,
    /// Requests that got 503.
    pub refused: usize,
    /// Of the requests that waited for the vault or another node: how long.
    pub waits: Vec<Duration>,
    /// Minute → tokens given, calls refused.
    pub minutes: BTreeMap<u64, (usize, usize)>,
}

impl Phase {
    pub fn call(&mut self, now: Duration, is_given: bool) {
        let (given, refused) = self.minutes.entry(now.as_secs() / MINUTE.as_secs()).or_default();
        *if is_given { given } else { refused } += 1;
    }

    pub fn exchanges(&self) -> usize {
        self.minutes.values().map(|(given, _)| given).sum()
    }

    pub fn limited(&self) -> usize {
        self.minutes.values().map(|(_, refused)| refused).sum()
    }

    /// Most calls in one minute, answered or not.
    pub fn peak(&self) -> usize {
        self.minutes
            .values()
            .map(|(given, refused)| given + refused)
            .max()
            .unwrap_or(0)
    }

    /// The wait that this part of those who waited did not exceed.
    fn quantile(&self, part: f64) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let index = (waits.len().saturating_sub(1) as f64 * part) as usize;
        waits.get(index).copied().unwrap_or_default()
    }
}

/// Plays `plan` without, with, and with a failing shared cache, and tells it in Markdown.
pub fn table(plan: &Plan) -> String {
    let mut text = format!(
        "{} nodes × {} subjects, a request of each pair every {} s on average; tokens of {} s; the vault answers {} calls a \
         minute; phases of {} minutes; seed {}\n\n\
         | shared cache | phase | exchanges a minute, mean | calls a minute, most | refused by the vault (429) | requests \
         | delayed | wait, median / 99 % / longest | refused |\n|---|---|---|---|---|---|---|---|---|\n",
        plan.nodes,
        plan.subjects,
        plan.gap.as_secs(),
        plan.expires_in.as_secs(),
        plan.limit,
        plan.phase.as_secs() / MINUTE.as_secs(),
        plan.seed
    );
    for cache in [Cache::None, Cache::Shared, Cache::Failing] {
        let name = match cache {
            Cache::None => "none",
            Cache::Shared => "Redis",
            Cache::Failing => "Redis, away for a third of the restart",
        };
        let phases = play(&Plan {
            cache,
            ..plan.clone()
        });
        for (phase, what) in phases.iter().zip(["start", "rolling restart", "after it"]) {
            row(&mut text, plan, (name, what), phase);
        }
    }
    text
}

fn row(text: &mut String, plan: &Plan, (name, what): (&str, &str), phase: &Phase) {
    let minutes = plan.phase.as_secs_f64() / MINUTE.as_secs_f64();
    let percent = |count: usize| {
        format!(
            "{count} ({:.2} %)",
            100.0 * count as f64 / phase.requests.max(1) as f64
        )
    };
    let ms = |part: f64| phase.quantile(part).as_millis();
    writeln!(
        text,
        "| {name} | {what} | {:.1} | {} | {} | {} | {} | {} / {} / {} ms | {} |",
        phase.exchanges() as f64 / minutes,
        phase.peak(),
        phase.limited(),
        phase.requests,
        percent(phase.waits.len()),
        ms(0.5),
        ms(0.99),
        ms(1.0),
        percent(phase.refused)
    )
    .expect("writing to a String cannot fail");
}
