//! How enrolled processes find addresses, where `capture: dns` could not see it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::addr::HostName;
use crate::config::{Capture, Config};
use crate::policy::HostPattern;

/// Processes that are looked at.
const PROCESSES: usize = 4096;
/// The largest file that is read, bytes.
const FILE_BYTES: u64 = 1024 * 1024;
const NAME: &str = "name look-ups";
/// Resolvers that are known for DNS over HTTPS.
const DOH: [&str; 6] = [
    "1.1.1.1",
    "1.0.0.1",
    "8.8.8.8",
    "8.8.4.4",
    "9.9.9.9",
    "149.112.112.112",
];
const DOT_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;

/// Nothing unless `capture: dns`; a warning for each way around it that is in use, or that all is well.
pub(super) fn findings(config: &Config, mount: &Path) -> Vec<Finding> {
    let Capture::Dns { hosts, .. } = &config.intercept.capture else {
        return Vec::new();
    };
    let mut unseen = BTreeSet::new();
    let (mut roots, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
    for process in processes(config, mount) {
        let proc = PathBuf::from(format!("/proc/{process}"));
        if seen_first(&proc.join("root/."), &mut roots) {
            let files = around(&proc.join("root"), hosts);
            unseen.extend(files.into_iter().map(|what| format!("process {process}: {what}")));
        }
        if seen_first(&proc.join("ns/net"), &mut namespaces) {
            let peers = ["net/tcp", "net/tcp6"].map(|table| peers(&read(&proc.join(table))));
            let what = peers.concat().into_iter().filter_map(by_connection);
            unseen.extend(what.map(|what| format!("namespace of process {process}: {what}")));
        }
    }
    if unseen.is_empty() {
        return vec![Finding::good(
            NAME,
            "capture: dns; no other way than DNS is in use now",
        )];
    }
    let warning = |detail| Finding {
        remedy: "see \"Narrowing\" in docs/operating.md; capture: all sees every connection".to_owned(),
        ..Finding::good(NAME, detail)
    };
    unseen.into_iter().map(warning).collect()
}

/// True once for each file, whatever its path. One that cannot be looked at is none.
fn seen_first(path: &Path, known: &mut BTreeSet<(u64, u64)>) -> bool {
    fs::metadata(path).is_ok_and(|file| known.insert((file.dev(), file.ino())))
}

fn processes(config: &Config, mount: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let cgroups = config.intercept.cgroups.iter();
    let mut directories: Vec<PathBuf> = cgroups
        .map(|path| mount.join(path.trim_start_matches('/')))
        .collect();
    while let Some(directory) = directories.pop() {
        found.extend(
            read(&directory.join("cgroup.procs"))
                .lines()
                .filter_map(|line| line.parse::<u32>().ok()),
        );
        if found.len() >= PROCESSES {
            found.truncate(PROCESSES);
            break;
        }
        let below = fs::read_dir(&directory).into_iter().flatten().flatten();
        directories.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}

/// What a process with this root may use.
fn around(root: &Path, hosts: &[HostPattern]) -> Vec<String> {
    let mut ways = Vec::new();
    if uses_resolve(&read(&root.join("etc/nsswitch.conf")))
        && root.join("run/systemd/resolve/io.systemd.Resolve").exists()
    {
        ways.push("/etc/nsswitch.conf asks systemd-resolved by its socket (nss-resolve)".to_owned());
    }
    if ["run/nscd/socket", "var/run/nscd/socket"]
        .iter()
        .any(|path| root.join(path).exists())
    {
        ways.push("nscd answers from its cache (/run/nscd/socket)".to_owned());
    }
    let named = named_hosts(&read(&root.join("etc/hosts")), hosts);
    ways.extend(named.into_iter().map(|name| format!("/etc/hosts names {name}")));
    ways
}

fn by_connection((address, port): (IpAddr, u16)) -> Option<String> {
    let known = || DOH.iter().any(|known| known.parse() == Ok(address));
    match port {
        DOT_PORT => Some(format!(
            "{address}:{port}: DNS over TLS; its namespace stays unsure meanwhile"
        )),
        HTTPS_PORT if known() => Some(format!("{address}:{port}: probably DNS over HTTPS")),
        _ => None,
    }
}

/// nsswitch.conf(5).
fn uses_resolve(nsswitch: &str) -> bool {
    let mut lines = nsswitch
        .lines()
        .filter_map(|line| line.trim().strip_prefix("hosts:"));
    let hosts = lines
        .next()
        .and_then(|line| line.split('#').next())
        .unwrap_or_default();
    hosts.split_ascii_whitespace().any(|service| service == "resolve")
}

/// hosts(5): the routed names in it.
fn named_hosts(file: &str, hosts: &[HostPattern]) -> BTreeSet<String> {
    let lines = file
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let names = lines.flat_map(|line| line.split_ascii_whitespace().skip(1));
    names
        .filter_map(HostName::parse)
        .filter(|name| hosts.iter().any(|pattern| pattern.matches(name)))
        .map(|name| name.to_string())
        .collect()
}

/// The remote ends in /proc/net/tcp or tcp6, words in the machine's byte order (proc_pid_net(5)).
fn peers(table: &str) -> Vec<(IpAddr, u16)> {
    let peer = |line: &str| {
        let (address, port) = line.split_ascii_whitespace().nth(2)?.split_once(':')?;
        let word = |at: usize| {
            u32::from_str_radix(address.get(at..at + 8)?, 16)
                .ok()
                .map(u32::to_ne_bytes)
        };
        let address = match address.len() {
            8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
            32 => {
                let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
                IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?)).to_canonical()
            }
            _ => return None,
        };
        Some((address, u16::from_str_radix(port, 16).ok()?))
    };
    table.lines().filter_map(peer).collect()
}

/// Empty when it cannot be read, is too large, or is no text.
fn read(path: &Path) -> String {
    use std::io::Read as _;
    let mut text = String::new();
    // A workload made the file: it may be anything, but a pipe would wait for ever.
    let plain = fs::metadata(path).is_ok_and(|file| file.is_file());
    let read = plain.then(|| {
        fs::File::open(path)
            .ok()?
            .take(FILE_BYTES)
            .read_to_string(&mut text)
            .ok()
    });
    if read.flatten().is_none() {
        String::new()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nss_resolve_is_found_where_it_counts() {
        assert!(uses_resolve(
            "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n"
        ));
        assert!(!uses_resolve("hosts: files dns # resolve\n"));
        assert!(!uses_resolve("networks: resolve\n"));
        assert!(!uses_resolve(""));
    }

    #[test]
    fn routed_hosts_in_the_hosts_file_are_named() {
        let hosts = ["api.github.com", "*.googleapis.com"].map(|host| HostPattern::parse(host).unwrap());
        let file = "127.0.0.1 localhost\n192.0.2.1 x.example API.github.com # y.googleapis.com\n\
                    ::1 a.b.googleapis.com\n# 192.0.2.2 api.github.com\n";
        let expected = ["a.b.googleapis.com", "api.github.com"].map(str::to_owned);
        assert_eq!(named_hosts(file, &hosts), BTreeSet::from(expected));
    }

    #[test]
    fn connections_that_carry_names_are_told_apart() {
        let word = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let line = |peer: &str| {
            format!(
                "  sl  local_address rem_address\n   0: {}:9C40 {peer} 01 0\n",
                word([0; 4])
            )
        };
        let one = word([1, 1, 1, 1]);
        assert_eq!(
            peers(&line(&format!("{one}:0355"))),
            [("1.1.1.1".parse().unwrap(), 853)]
        );
        let mapped = format!(
            "{}{}{}{one}:01BB",
            word([0; 4]),
            word([0; 4]),
            word([0, 0, 0xff, 0xff])
        );
        let peers = peers(&line(&mapped));
        assert_eq!(peers, [("1.1.1.1".parse().unwrap(), 443)]);
        assert!(by_connection(peers[0]).unwrap().contains("HTTPS"));
        assert!(by_connection(("192.0.2.1".parse().unwrap(), 853)).is_some());
        assert_eq!(by_connection(("192.0.2.1".parse().unwrap(), 443)), None);
    }

    #[test]
    fn a_root_is_searched_for_each_way() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let hosts = [HostPattern::parse("api.github.com").unwrap()];
        assert_eq!(around(root.path(), &hosts), Vec::<String>::new());
        write("etc/nsswitch.conf", "hosts: resolve\n");
        // Where systemd-resolved does not listen, the next service is asked.
        assert_eq!(around(root.path(), &hosts), Vec::<String>::new());
        write("run/systemd/resolve/io.systemd.Resolve", "");
        write("run/nscd/socket", "");
        write("etc/hosts", "192.0.2.1 api.github.com\n");
        let ways = around(root.path(), &hosts);
        assert_eq!(ways.len(), 3, "{ways:?}");
    }
}
