//! What the programs ask of a kernel: hooks and helpers, each with the version that brought it and what happens
//! without it. Whether a kernel has them is tried, not concluded from its version: distributions backport.

use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};

use super::{Finding, finding};
use crate::sys;

/// Asks a kernel; faked in tests.
pub(super) trait Prober {
    /// Whether a program of this type can be loaded for the hook (numbers: `enum bpf_prog_type`, `enum
    /// bpf_attach_type`, include/uapi/linux/bpf.h).
    fn hook(&self, program: ProgramType, hook: u32) -> Result<bool, String>;

    /// Whether a program of this type may call the helper.
    fn helper(&self, program: ProgramType, helper: BpfHelper) -> Result<bool, String>;
}

/// The running kernel.
pub(super) struct Running;

impl Prober for Running {
    fn hook(&self, program: ProgramType, hook: u32) -> Result<bool, String> {
        let number = match program {
            SKB => 8,
            SOCK_OPS => 13,
            SOCK_ADDR => 18,
            other => return Err(format!("{other:?} has no number here")),
        };
        match sys::takes_program(number, hook) {
            Ok(()) => Ok(true),
            // What an unknown type or hook gives; E2BIG: the kernel does not know the field itself.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::E2BIG)) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    fn helper(&self, program: ProgramType, helper: BpfHelper) -> Result<bool, String> {
        // This helper is there without MPTCP, too, but the verifier refuses it then.
        let of_mptcp = matches!(helper, BpfHelper::BPF_FUNC_skc_to_mptcp_sock);
        if of_mptcp && !Path::new("/proc/sys/net/mptcp").exists() {
            return Ok(false);
        }
        is_helper_supported(program, helper).map_err(|error| error.to_string())
    }
}

/// Whether the programs can find the MPTCP socket around a subflow.
pub(in crate::redirect) fn shows_mptcp_origins() -> bool {
    matches!(
        Running.helper(SOCK_ADDR, BpfHelper::BPF_FUNC_skc_to_mptcp_sock),
        Ok(true)
    )
}

/// Something that a program needs of the kernel.
struct Feature {
    name: &'static str,
    program: ProgramType,
    what: What,
    /// The Linux version that brought it to this type of program.
    since: &'static str,
    without: Without,
}

#[derive(Clone, Copy)]
enum What {
    Hook(u32),
    Helper(BpfHelper),
}

#[derive(Clone, Copy)]
enum Without {
    /// The agent does not start.
    Refused,
    /// It does, with a difference: what is so with the feature, and without.
    Differs(&'static str, &'static str),
}

const SOCK_ADDR: ProgramType = ProgramType::CgroupSockAddr;
const SOCK_OPS: ProgramType = ProgramType::SockOps;
const SKB: ProgramType = ProgramType::CgroupSkb;

const fn hook(name: &'static str, program: ProgramType, hook: u32, since: &'static str) -> Feature {
    Feature {
        name,
        program,
        what: What::Hook(hook),
        since,
        without: Without::Refused,
    }
}

const fn helper(name: &'static str, program: ProgramType, helper: BpfHelper, since: &'static str) -> Feature {
    Feature {
        name,
        program,
        what: What::Helper(helper),
        since,
        without: Without::Refused,
    }
}

const WITHOUT_NAMES: Without = Without::Differs(
    "DNS answers can be read",
    "DNS answers cannot be read; `capture: dns` is refused",
);

const FEATURES: &[Feature] = &[
    hook("hook connect4", SOCK_ADDR, 10, "4.17"),
    hook("hook connect6", SOCK_ADDR, 11, "4.17"),
    hook("hook sendmsg4", SOCK_ADDR, 14, "4.18"),
    hook("hook sendmsg6", SOCK_ADDR, 15, "4.18"),
    hook("hook getpeername4", SOCK_ADDR, 29, "5.8"),
    hook("hook getpeername6", SOCK_ADDR, 30, "5.8"),
    hook("hook sock_ops", SOCK_OPS, 3, "4.13"),
    helper(
        "helper sk_lookup_tcp",
        SOCK_ADDR,
        BpfHelper::BPF_FUNC_sk_lookup_tcp,
        "4.20",
    ),
    helper(
        "helper sk_storage_get",
        SOCK_ADDR,
        BpfHelper::BPF_FUNC_sk_storage_get,
        "5.2",
    ),
    helper(
        "helper sk_storage_get (sock_ops)",
        SOCK_OPS,
        BpfHelper::BPF_FUNC_sk_storage_get,
        "5.2",
    ),
    helper(
        "helper get_netns_cookie",
        SOCK_ADDR,
        BpfHelper::BPF_FUNC_get_netns_cookie,
        "5.7",
    ),
    helper(
        "helper get_current_cgroup_id",
        SOCK_ADDR,
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
        "4.18",
    ),
    Feature {
        name: "helper set_retval",
        program: SOCK_ADDR,
        what: What::Helper(BpfHelper::BPF_FUNC_set_retval),
        since: "5.18",
        without: Without::Differs(
            "a refused connect() fails with ECONNREFUSED",
            "a refused connect() fails with EPERM",
        ),
    },
    Feature {
        name: "helper skc_to_mptcp_sock",
        program: SOCK_ADDR,
        what: What::Helper(BpfHelper::BPF_FUNC_skc_to_mptcp_sock),
        since: "5.19, with MPTCP",
        without: Without::Differs(
            "getpeername() of an MPTCP socket shows the origin",
            "getpeername() of an MPTCP socket shows the agent",
        ),
    },
    Feature {
        name: "hook ingress",
        program: SKB,
        what: What::Hook(0),
        since: "4.10",
        without: WITHOUT_NAMES,
    },
    Feature {
        name: "helper sk_storage_get (ingress)",
        program: SKB,
        what: What::Helper(BpfHelper::BPF_FUNC_sk_storage_get),
        since: "5.2",
        without: WITHOUT_NAMES,
    },
];

/// Tries each feature, in the order of the table.
pub(super) fn findings(prober: &impl Prober) -> Vec<Finding> {
    let tried = FEATURES.iter().map(|feature| {
        let answer = match feature.what {
            What::Hook(number) => prober.hook(feature.program, number),
            What::Helper(helper) => prober.helper(feature.program, helper),
        };
        judge(feature, answer)
    });
    tried.collect()
}

fn judge(feature: &Feature, answer: Result<bool, String>) -> Finding {
    let Feature {
        name, since, without, ..
    } = *feature;
    match (answer, without) {
        (Ok(true), Without::Refused) => finding(name, true, "there".into(), None),
        (Ok(true), Without::Differs(with, _)) => finding(name, true, format!("there: {with}"), None),
        (Ok(false), Without::Refused) => finding(
            name,
            false,
            format!("the kernel does not have it (Linux {since})"),
            Some(format!(
                "use Linux {}.{} or later",
                super::FLOOR.0,
                super::FLOOR.1
            )),
        ),
        // The loader takes the same way when it cannot ask.
        (_, Without::Differs(_, without)) => {
            finding(name, true, format!("missing (Linux {since}): {without}"), None)
        }
        (Err(error), Without::Refused) => finding(
            name,
            false,
            format!("cannot be asked for: {error}"),
            Some(
                "run as root; see whether kernel.unprivileged_bpf_disabled or a lockdown is in force".into(),
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that lacks one feature, or answers nothing.
    struct Fake {
        lacks: Option<&'static str>,
        mute: bool,
    }

    impl Fake {
        fn answer(&self, program: ProgramType, is_it: impl Fn(What) -> bool) -> Result<bool, String> {
            if self.mute {
                return Err("Operation not permitted".into());
            }
            let mut asked = FEATURES
                .iter()
                .filter(|feature| feature.program == program && is_it(feature.what));
            Ok(asked.next().expect("a feature of the table").name != self.lacks.unwrap_or_default())
        }
    }

    impl Prober for Fake {
        fn hook(&self, program: ProgramType, hook: u32) -> Result<bool, String> {
            self.answer(program, |what| matches!(what, What::Hook(other) if other == hook))
        }

        fn helper(&self, program: ProgramType, helper: BpfHelper) -> Result<bool, String> {
            self.answer(
                program,
                |what| matches!(what, What::Helper(other) if other as u32 == helper as u32),
            )
        }
    }

    #[test]
    fn a_kernel_that_has_all_is_well() {
        let all = findings(&Fake {
            lacks: None,
            mute: false,
        });
        assert_eq!(all.len(), FEATURES.len());
        assert!(
            all.iter()
                .all(|finding| finding.ok && finding.detail.starts_with("there")),
            "{all:?}"
        );
    }

    #[test]
    fn each_feature_that_is_missing_is_named_with_what_comes_of_it() {
        for feature in FEATURES {
            let found = findings(&Fake {
                lacks: Some(feature.name),
                mute: false,
            });
            let (lacking, others): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|finding| finding.name == feature.name);
            assert!(others.iter().all(|finding| finding.ok), "{}", feature.name);
            let [finding] = &lacking[..] else {
                panic!("{lacking:?}")
            };
            assert!(finding.detail.contains(feature.since), "{finding:?}");
            match feature.without {
                Without::Refused => assert!(!finding.ok && finding.remedy.is_some(), "{finding:?}"),
                Without::Differs(_, without) => {
                    assert!(finding.ok && finding.detail.ends_with(without), "{finding:?}");
                }
            }
        }
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_not_taken_for_one_that_has_it() {
        let found = findings(&Fake {
            lacks: None,
            mute: true,
        });
        for (feature, finding) in FEATURES.iter().zip(found) {
            let differs = matches!(feature.without, Without::Differs(..));
            assert!(
                differs || (!finding.ok && finding.remedy.is_some()),
                "{finding:?}"
            );
            assert!(!finding.detail.starts_with("there"), "{finding:?}");
        }
    }

    /// Every program of the object has its hook in the table.
    #[test]
    fn no_program_is_forgotten() {
        for program in tv_ebpf::abi::PROGRAMS.into_iter().chain([tv_ebpf::abi::INGRESS]) {
            let name = program.trim_start_matches("tv_");
            let known = FEATURES
                .iter()
                .any(|feature| feature.name.strip_prefix("hook ") == Some(name));
            assert!(known, "{program} has no hook in the table");
        }
    }
}
