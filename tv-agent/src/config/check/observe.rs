//! What people and programs see of the agent: the audit trail and traces.

use std::path::{Path, PathBuf};

use url::Url;

use super::{Checker, Error, raw};
use crate::audit::{Destination, Settings};
use crate::traces;

impl Checker<'_> {
    pub(super) fn audit(&self, raw: &raw::Audit) -> Result<Option<Settings>, Error> {
        let Some(at) = &raw.to else {
            return Ok(None);
        };
        let to = match at.value.as_str() {
            "off" => return Ok(None),
            "stdout" => Destination::Stdout,
            path if Path::new(path).is_absolute() => Destination::File(path.into()),
            _ => {
                let problem = "is no place to write to; allowed: an absolute path, stdout, or off";
                return Err(self.value("audit.to", at, &at.value, problem));
            }
        };
        Ok(Some(Settings {
            to,
            on_failure: raw.on_failure,
        }))
    }

    pub(super) fn traces(&self, raw: raw::Traces) -> Result<(traces::Settings, Vec<PathBuf>), Error> {
        let at = &raw.endpoint;
        let url = Url::parse(&at.value).ok();
        let url = url.filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && url.username().is_empty()
                && url.password().is_none()
        });
        let endpoint = url.ok_or_else(|| {
            let shown = if at.value.contains('@') {
                "an address with credentials"
            } else {
                &*at.value
            };
            let problem =
                "is no collector's address; allowed: http or https, such as http://127.0.0.1:4318/v1/traces";
            self.value("traces.endpoint", at, shown, problem)
        })?;
        let sample = match &raw.sample {
            None => 1.0,
            Some(at) if (0.0..=1.0).contains(&at.value) => at.value,
            Some(at) => {
                return Err(self.value(
                    "traces.sample",
                    at,
                    at.value,
                    "is no part of all requests; allowed: 0 to 1",
                ));
            }
        };
        Ok((traces::Settings { endpoint, sample }, raw.extra_roots))
    }
}
