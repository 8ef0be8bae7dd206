//! Commands and environments in a root that is made up.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const CERTIFI: &str = "lib/python3.11/site-packages/certifi/cacert.pem";

struct Fake {
    root: tempfile::TempDir,
    environment: HashMap<&'static str, &'static str>,
}

impl Fake {
    /// With these empty files.
    fn new(files: &[&str], environment: &[(&'static str, &'static str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let file = root.path().join(file.trim_start_matches('/'));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        Self {
            root,
            environment: environment.iter().copied().collect(),
        }
    }

    fn extra(&self, command: &[&str]) -> Extra {
        let command: Vec<OsString> = command.iter().map(Into::into).collect();
        let environment = |name: &str| self.environment.get(name).map(Into::into);
        extra(&environment, &command, &Root::open(self.root.path()).unwrap()).unwrap()
    }
}

fn below(home: &str) -> Vec<PathBuf> {
    vec![Path::new(home).join(CERTIFI)]
}

#[test]
fn a_virtual_environment_is_found_by_each_of_its_marks() {
    let files = [
        "/srv/x/env/lib/python3.11/site-packages/certifi/cacert.pem",
        "/srv/x/env/pyvenv.cfg",
        "/usr/bin/python3.11",
    ];
    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);
    let found: [Case; 5] = [
        (&[("VIRTUAL_ENV", "/srv/x/env")], &["gunicorn"]),
        (&[("PATH", "/none:/srv/x/env/bin")], &["gunicorn"]),
        (&[], &["/srv/x/env/bin/python", "app.py"]),
        (&[], &["/srv/x/env/bin/gunicorn"]),
        (
            &[("PYTHONPATH", "/srv/x/env/lib/python3.11/site-packages")],
            &["python3"],
        ),
    ];
    for (environment, command) in found {
        let fake = Fake::new(&files, environment);
        let bin = fake.root.path().join("srv/x/env/bin");
        fs::create_dir(&bin).unwrap();
        symlink("/usr/bin/python3.11", bin.join("python")).unwrap();
        assert_eq!(
            fake.extra(command).certifi,
            below("/srv/x/env"),
            "{environment:?} {command:?}"
        );
    }
    let fake = Fake::new(&files, &[("PATH", "/usr/bin"), ("VIRTUAL_ENV", "srv/x/env")]);
    assert_eq!(
        fake.extra(&["python3"]),
        Extra::default(),
        "neither named nor a whole path"
    );
}

#[test]
fn an_interpreter_leads_to_its_own_packages_and_pyenv_to_all_versions() {
    let files = [
        "/data/py/bin/python3.11",
        "/data/py/lib/python3.11/site-packages/certifi/cacert.pem",
        "/root/.pyenv/versions/3.11/lib/python3.11/site-packages/certifi/cacert.pem",
    ];
    let fake = Fake::new(&files, &[("PATH", "/links:/root/.pyenv/shims")]);
    fs::create_dir(fake.root.path().join("links")).unwrap();
    symlink("/data/py/bin/python3.11", fake.root.path().join("links/python3")).unwrap();
    let mut found = fake.extra(&["python3"]).certifi;
    found.sort();
    assert_eq!(
        found,
        [below("/data/py"), below("/root/.pyenv/versions/3.11")].concat()
    );
}

#[test]
fn java_is_found_by_its_home_its_program_and_its_options() {
    let own = "/opt/a/b/c/lib/security/cacerts";
    let files = [
        own,
        "/opt/a/b/c/bin/java",
        "/etc/app/trust.jks",
        "/etc/app/other.p12",
    ];
    for (environment, command) in [
        (&[("JAVA_HOME", "/opt/a/b/c")][..], &["app"][..]),
        (&[("PATH", "/bin:/opt/a/b/c/bin")][..], &["java"][..]),
        (&[][..], &["/opt/a/b/c/bin/java", "-jar", "x.jar"][..]),
    ] {
        let fake = Fake::new(&files, environment);
        assert_eq!(
            fake.extra(command).keystores,
            [PathBuf::from(own)],
            "{environment:?} {command:?}"
        );
    }
    let options = [
        (
            "JAVA_TOOL_OPTIONS",
            "-Xmx1g -Djavax.net.ssl.trustStore=/etc/app/trust.jks",
        ),
        ("JDK_JAVA_OPTIONS", "-Djavax.net.ssl.trustStore=/missing"),
    ];
    let fake = Fake::new(&files, &options);
    let command = ["java", "-Djavax.net.ssl.trustStore=/etc/app/other.p12", "Main"];
    assert_eq!(
        fake.extra(&command).keystores,
        [PathBuf::from("/etc/app/trust.jks"), "/etc/app/other.p12".into()]
    );
}
