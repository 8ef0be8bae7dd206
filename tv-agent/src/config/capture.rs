//! `intercept.capture` and the keys that belong to one of its values.

use serde_saphyr::Spanned;

use super::check::Checker;
use super::raw;
use super::*;

/// As long as an address is kept that was seen: one that was not may be used for as long.
const UNSURE: Duration = Duration::from_secs(3600);
const UNSURE_MAX: u64 = 24 * 3600;
// The limits of the kernel half, which has as many of both.
const CIDRS: usize = tv_ebpf::abi::CAPTURE_ENTRIES;
const HOSTS: usize = tv_ebpf::abi::NAME_ENTRIES;

impl Checker<'_> {
    pub(super) fn capture(&self, raw: &raw::Intercept, routes: &[Route]) -> Result<Capture, Error> {
        let mode = raw.capture.as_ref().map_or(raw::Capture::All, |at| at.value);
        if let Some(at) = raw.capture_cidrs.as_ref().filter(|_| mode != raw::Capture::Cidr) {
            let first = at.value.first().map_or("[]", |net| &net.value);
            let problem = "has no effect; allowed: only with intercept.capture: cidr";
            return Err(self.value("intercept.capture_cidrs", at, first, problem));
        }
        if let Some(at) = raw.unsure_seconds.as_ref().filter(|_| mode != raw::Capture::Dns) {
            let problem = "has no effect; allowed: only with intercept.capture: dns";
            return Err(self.value("intercept.unsure_seconds", at, at.value, problem));
        }
        match (mode, &raw.capture) {
            (raw::Capture::Cidr, Some(at)) => self.cidrs(at, raw.capture_cidrs.as_ref()),
            (raw::Capture::Dns, Some(at)) => self.names(at, raw.unsure_seconds.as_ref(), routes),
            _ => Ok(Capture::All),
        }
    }

    fn cidrs(
        &self,
        mode: &Spanned<raw::Capture>,
        list: Option<&Spanned<Vec<Spanned<String>>>>,
    ) -> Result<Capture, Error> {
        let key = "intercept.capture_cidrs";
        let Some(list) = list.filter(|list| !list.value.is_empty()) else {
            let problem = "needs intercept.capture_cidrs; allowed: with a list of networks there, such as [192.0.2.0/24]";
            return Err(self.value("intercept.capture", mode, "cidr", problem));
        };
        if list.value.len() > CIDRS {
            let problem = format!("networks are too many; allowed: {CIDRS} at most");
            return Err(self.value(key, list, list.value.len(), problem));
        }
        let nets = list.value.iter().map(|at| self.network(key, at));
        nets.collect::<Result<_, _>>().map(Capture::Cidr)
    }

    fn names(
        &self,
        mode: &Spanned<raw::Capture>,
        seconds: Option<&Spanned<u64>>,
        routes: &[Route],
    ) -> Result<Capture, Error> {
        let hosts: Vec<HostPattern> = routes.iter().flat_map(|route| route.hosts.clone()).collect();
        if hosts.len() > HOSTS {
            let problem = format!(
                "holds {HOSTS} hosts and the routes name {}; allowed: fewer hosts (wildcards), or all",
                hosts.len()
            );
            return Err(self.value("intercept.capture", mode, "dns", problem));
        }
        let unsure_for = match seconds {
            Some(at) if (1..=UNSURE_MAX).contains(&at.value) => Duration::from_secs(at.value),
            Some(at) => {
                let problem = format!("is out of range; allowed: 1 to {UNSURE_MAX} seconds");
                return Err(self.value("intercept.unsure_seconds", at, at.value, problem));
            }
            None => UNSURE,
        };
        Ok(Capture::Dns { hosts, unsure_for })
    }
}
