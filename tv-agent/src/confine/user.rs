//! Whom the data path runs as.

use std::fmt;

/// The user that is taken when none is configured, if there is one of this name.
pub const DEFAULT_NAME: &str = "tv-agent";
/// The user and group otherwise: below what systemd and container runtimes give out, above what distributions do.
pub const DEFAULT_UID: u32 = 64943;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Why a word names no user to run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Root,
    Number,
    Name,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "is root; allowed: a user of its own, by name or number",
            Self::Number => "is no user id; allowed: 1 to 4294967294, or a name of /etc/passwd",
            Self::Name => "is not in /etc/passwd; allowed: a name that is, or a number",
        })
    }
}

impl User {
    /// The user of a name or number, with the group that `passwd` (passwd(5)) says. A number that it does not know has
    /// the group of the same number.
    ///
    /// # Errors
    /// When it is root or nobody who is known.
    pub fn find(word: &str, passwd: &str) -> Result<Self, Unknown> {
        let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        let user = if digits {
            // The last number means "no change" to setresuid(2).
            let uid = word.parse().ok().filter(|uid| *uid != u32::MAX);
            let uid = uid.ok_or(Unknown::Number)?;
            let known = entries(passwd).find(|(_, user)| user.uid == uid);
            known.map_or(Self { uid, gid: uid }, |(_, user)| user)
        } else {
            let known = entries(passwd).find(|(name, _)| *name == word);
            known.ok_or(Unknown::Name)?.1
        };
        if user.uid == 0 || user.gid == 0 {
            return Err(Unknown::Root);
        }
        Ok(user)
    }

    /// The user when none is configured.
    pub fn by_default(passwd: &str) -> Self {
        Self::find(DEFAULT_NAME, passwd).unwrap_or(Self {
            uid: DEFAULT_UID,
            gid: DEFAULT_UID,
        })
    }
}

/// `name:password:uid:gid:…`. Pure.
fn entries(passwd: &str) -> impl Iterator<Item = (&str, User)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name, User { uid, gid }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0::/:/bin/sh\nbroken:x\nshop:x:1000:1001::/:\ntoor:x:0:5::/:\nwheel:x:7:0::/:\n";

    #[test]
    fn a_user_is_found_by_name_and_number_and_is_never_root() {
        let find = |word| User::find(word, PASSWD);
        let shop = User { uid: 1000, gid: 1001 };
        assert_eq!((find("shop"), find("1000")), (Ok(shop), Ok(shop)));
        assert_eq!(
            find("64943"),
            Ok(User {
                uid: 64943,
                gid: 64943
            })
        );
        for root in ["root", "toor", "wheel", "0", "00", "7"] {
            assert_eq!(find(root), Err(Unknown::Root), "{root}");
        }
        for number in ["4294967295", "99999999999"] {
            assert_eq!(find(number), Err(Unknown::Number), "{number}");
        }
        for name in ["", "nobody-knows", "-1", "broken", "1000x"] {
            assert_eq!(find(name), Err(Unknown::Name), "{name}");
        }
    }

    #[test]
    fn the_agents_own_user_is_the_default_if_there_is_one() {
        let nobody = User {
            uid: DEFAULT_UID,
            gid: DEFAULT_UID,
        };
        assert_eq!(User::by_default(PASSWD), nobody);
        assert_eq!(
            User::by_default("tv-agent:x:0:0::/:"),
            nobody,
            "root by another name"
        );
        assert_eq!(
            User::by_default("tv-agent:x:998:997::/:"),
            User { uid: 998, gid: 997 }
        );
    }
}
