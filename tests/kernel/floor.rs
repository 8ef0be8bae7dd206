//! What preflight says of this kernel and what loading does agree, whatever the kernel: `cargo xtask test --kernels`
//! runs this one also below the oldest kernel that is supported.

use std::fs;

use tv_agent::redirect::{Error, Finding, Redirect, probe};

use crate::world::{fail, with_world};

#[test]
fn a_kernel_does_or_is_refused_by_name() {
    with_world("floor", |world| {
        let lacking: Vec<Finding> = probe().into_iter().filter(|finding| !finding.ok).collect();
        match Redirect::load(&world.pin_root(), world.run_dir(), "floor") {
            Ok(_) => assert_eq!(lacking, []),
            // Not `Verifier`: the programs themselves are taken everywhere.
            Err(Error::Unsupported(what)) => {
                assert!(
                    lacking.iter().any(|finding| finding.name == what),
                    "{what}: {lacking:?}"
                );
                assert!(
                    lacking.iter().all(|finding| finding.remedy.is_some()),
                    "{lacking:?}"
                );
                assert!(!world.pin_root().exists(), "nothing is left");
                let locks = fs::read_dir(world.run_dir().join("instances")).unwrap();
                assert_eq!(locks.count(), 0, "nothing is left");
            }
            Err(other) => fail(other),
        }
    });
}
