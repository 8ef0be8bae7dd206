//! Cargo's plug-ins that a release needs, each pinned and built once into target/tools.

use std::path::PathBuf;
use std::process::Command;

use crate::{Failed, process, recipe, target};

pub struct Tool {
    pub package: &'static str,
    /// The last one seen to work.
    pub version: &'static str,
}

pub const AUDITABLE: Tool = Tool {
    package: "cargo-auditable",
    version: "0.7.7",
};
pub const AUDIT_INFO: Tool = Tool {
    package: "rust-audit-info",
    version: "0.5.4",
};
pub const DEB: Tool = Tool {
    package: "cargo-deb",
    version: "3.8.0",
};
pub const CYCLONEDX: Tool = Tool {
    package: "cargo-cyclonedx",
    version: "0.5.9",
};

impl Tool {
    /// Its program, after building it if it is not there in this version.
    pub fn get(&self) -> Result<PathBuf, Failed> {
        let Self { package, version } = *self;
        let tools = recipe::tools(&target());
        let program = tools.join("bin").join(package);
        if program.is_file() && self.installed() {
            return Ok(program);
        }
        eprintln!("missing: {package} {version}; building it takes a few minutes");
        let mut cargo = Command::new("cargo");
        cargo.args([
            "install",
            package,
            "--version",
            version,
            "--locked",
            "--force",
            "--root",
        ]);
        process::run(process::clear_cargo(&mut cargo).arg(&tools))?;
        Ok(program)
    }

    /// Cargo's own record, since not each of them tells its version.
    fn installed(&self) -> bool {
        let record = recipe::tools(&target()).join(".crates.toml");
        let entry = format!("\"{} {} ", self.package, self.version);
        std::fs::read_to_string(record).is_ok_and(|record| record.contains(&entry))
    }
}
