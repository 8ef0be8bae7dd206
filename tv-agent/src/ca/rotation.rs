//! The rotation of a root as a pure state machine: which step comes next, and what speaks against it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::profile;
use super::rfc3339;

/// How far the replacement of one root by the next has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The next root is to be put into every store, beside the present one.
    Published,
    /// Every workload was seen to have it.
    Trusted,
    /// It signs; the old root stays in the stores, its key on its place.
    Issuing,
    /// The old root's key is gone from the node. There is no way back.
    Retiring,
    /// The old root is to be taken out of the stores. Nothing is under way.
    Removed,
}

impl Step {
    /// The step after `before`; None: there was no rotation yet.
    pub fn after(before: Option<Self>) -> Self {
        match before {
            None | Some(Self::Removed) => Self::Published,
            Some(Self::Published) => Self::Trusted,
            Some(Self::Trusted) => Self::Issuing,
            Some(Self::Issuing) => Self::Retiring,
            Some(Self::Retiring) => Self::Removed,
        }
    }

    /// Whether the next root stands beside the present one and signs nothing yet.
    pub(super) fn waits(self) -> bool {
        matches!(self, Self::Published | Self::Trusted)
    }

    /// Whether the old root is still to be trusted.
    pub(super) fn keeps_old(self) -> bool {
        matches!(self, Self::Issuing | Self::Retiring)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Published => "published",
            Self::Trusted => "trusted",
            Self::Issuing => "issuing",
            Self::Retiring => "retiring",
            Self::Removed => "removed",
        })
    }
}

/// What `rotation.json` of a CA directory holds. Writing it is what makes a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    pub step: Step,
    /// When this step was made, seconds since 1970.
    pub since: i64,
    /// When the new root began to sign, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuing_since: Option<i64>,
    /// SHA-256 of the root that goes, hexadecimal.
    pub old: String,
    /// SHA-256 of the root that comes, hexadecimal.
    pub new: String,
    /// Files that the step still has to move; see [`super::files`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) filing: Option<Filing>,
}

/// Files of a begun move, which whoever writes next finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Filing {
    /// The old root's key goes to `old/`.
    Old,
    /// The new root's files come from `next/`.
    New,
}

impl Rotation {
    pub(super) fn begin(old: String, new: String, now: OffsetDateTime) -> Self {
        Self {
            step: Step::Published,
            since: now.unix_timestamp(),
            issuing_since: None,
            old,
            new,
            filing: None,
        }
    }

    pub(super) fn after(&self, now: OffsetDateTime) -> Self {
        let step = Step::after(Some(self.step));
        let now = now.unix_timestamp();
        Self {
            step,
            since: now,
            issuing_since: if step == Step::Issuing {
                Some(now)
            } else {
                self.issuing_since
            },
            filing: (step == Step::Issuing).then_some(Filing::Old),
            ..self.clone()
        }
    }
}

/// A process as the daemon knows it: one line of `GET /trust`, as far as a rotation asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Witness {
    pub pid: u32,
    #[serde(default)]
    pub process: Option<String>,
    #[serde(default)]
    pub state: String,
    /// SHA-256 of each root that it is known to trust, hexadecimal.
    #[serde(default)]
    pub roots: BTreeSet<String>,
    #[serde(default)]
    pub advice: Option<String>,
}

impl Witness {
    fn objection(&self, new: &str, has_to_have_it: bool) -> Option<String> {
        let why = match &*self.state {
            "untrusted" => "does not trust our CA",
            "needs_restart" => "has to be restarted to trust our CA",
            _ if has_to_have_it && !self.roots.contains(new) => "does not have the new root yet",
            _ => return None,
        };
        let name = self.process.as_deref().unwrap_or("?");
        let advice = self.advice.as_deref().filter(|advice| !advice.is_empty());
        let advice = advice.map(|advice| format!(" ({advice})")).unwrap_or_default();
        Some(format!("process {} ({name}) {why}{advice}", self.pid))
    }
}

/// What speaks against the step after `rotation`, a sentence each. `witnesses`: None where no daemon tells.
pub(super) fn against(
    rotation: Option<&Rotation>,
    witnesses: Option<&[Witness]>,
    now: OffsetDateTime,
) -> Vec<String> {
    let Some(rotation) = rotation.filter(|rotation| rotation.step != Step::Removed) else {
        // Publishing takes nothing away.
        return Vec::new();
    };
    let mut found = Vec::new();
    if rotation.step == Step::Retiring
        && let Some(gone) = leaves_gone(rotation).filter(|gone| now < *gone)
    {
        found.push(format!(
            "leaves of the old root may be alive until {}",
            rfc3339(gone)
        ));
    }
    match witnesses {
        None => found.push("no daemon tells which workloads trust the new root".to_owned()),
        Some(all) => {
            let has_to_have_it = rotation.step < Step::Retiring;
            found.extend(
                all.iter()
                    .filter_map(|one| one.objection(&rotation.new, has_to_have_it)),
            );
        }
    }
    found
}

/// When the last leaf under the old root has ended.
fn leaves_gone(rotation: &Rotation) -> Option<OffsetDateTime> {
    let since = OffsetDateTime::from_unix_timestamp(rotation.issuing_since?).ok()?;
    // The daemon looks every few seconds; an hour covers one that was busy.
    Some(since + profile::LEAF_LIFE + Duration::HOUR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn rotation(step: Step) -> Rotation {
        let mut rotation = Rotation::begin("aa".into(), "bb".into(), at(1000));
        while rotation.step < step {
            rotation = rotation.after(at(1000));
        }
        rotation
    }

    fn witness(state: &str, roots: &[&str]) -> Witness {
        Witness {
            pid: 7,
            process: Some("app".into()),
            state: state.into(),
            roots: roots.iter().map(|r| (*r).to_owned()).collect(),
            advice: None,
        }
    }

    #[test]
    fn steps_come_in_order_and_begin_again() {
        let mut step = None;
        let mut told = Vec::new();
        for _ in 0..6 {
            step = Some(Step::after(step));
            told.push(step.unwrap().to_string());
        }
        assert_eq!(
            told,
            [
                "published",
                "trusted",
                "issuing",
                "retiring",
                "removed",
                "published"
            ]
        );
    }

    #[test]
    fn the_time_of_issuing_is_remembered_and_only_that_step_moves_files() {
        let rotation = rotation(Step::Trusted);
        assert_eq!(rotation.issuing_since, None);
        let issuing = rotation.after(at(2000));
        assert_eq!(
            (issuing.issuing_since, issuing.filing),
            (Some(2000), Some(Filing::Old))
        );
        let retiring = issuing.after(at(3000));
        assert_eq!((retiring.issuing_since, retiring.filing), (Some(2000), None));
        assert_eq!(
            (retiring.since, &*retiring.old, &*retiring.new),
            (3000, "aa", "bb")
        );
    }

    #[test]
    fn nothing_speaks_against_a_beginning() {
        assert!(against(None, None, at(0)).is_empty());
        let removed = rotation(Step::Removed);
        assert!(against(Some(&removed), None, at(0)).is_empty());
    }

    #[test]
    fn every_workload_has_to_have_the_new_root_before_it_signs() {
        let good = witness("verified", &["aa", "bb"]);
        for step in [Step::Published, Step::Trusted, Step::Issuing] {
            let ask = |all: &[Witness]| against(Some(&rotation(step)), Some(all), at(2000));
            assert!(ask(std::slice::from_ref(&good)).is_empty(), "{step}");
            assert!(ask(&[]).is_empty(), "{step}");
            let lacking = ask(&[good.clone(), witness("verified", &["aa"])]);
            assert_eq!(
                lacking,
                ["process 7 (app) does not have the new root yet"],
                "{step}"
            );
            for state in ["untrusted", "needs_restart"] {
                assert_eq!(ask(&[witness(state, &["aa", "bb"])]).len(), 1, "{step} {state}");
            }
            let told = against(Some(&rotation(step)), None, at(2000));
            assert!(told[0].contains("no daemon"), "{told:?}");
        }
    }

    #[test]
    fn the_old_root_stays_while_its_leaves_may_live() {
        let retiring = rotation(Step::Retiring);
        let early = against(Some(&retiring), Some(&[]), at(1000 + 72 * 3600));
        assert!(early[0].contains("1970-01-04T01:16:40Z"), "{early:?}");
        assert!(against(Some(&retiring), Some(&[]), at(1000 + 73 * 3600)).is_empty());
        // Whoever has only the new root is well; whoever trusts none is not.
        let late = at(1000 + 73 * 3600);
        assert!(against(Some(&retiring), Some(&[witness("verified", &[])]), late).is_empty());
        assert_eq!(
            against(Some(&retiring), Some(&[witness("untrusted", &[])]), late).len(),
            1
        );
    }

    #[test]
    fn a_line_of_the_daemon_is_read_whatever_else_it_says() {
        let line = r#"{"pid":12,"started":5,"mntns":"4:4026531841","cgroup":"/a","unit":null,"pod":null,
            "container":null,"process":"node","runtime":"node","state":"needs_restart","reason":"cached",
            "roots":["bb"],"stores":["bundle"],"unreached":[],"advice":"restart it"}"#;
        let row: Witness = serde_json::from_str(line).unwrap();
        assert_eq!(
            against(Some(&rotation(Step::Published)), Some(&[row]), at(0)),
            ["process 12 (node) has to be restarted to trust our CA (restart it)"]
        );
        assert!(serde_json::from_str::<Witness>("{}").is_err());
    }
}
