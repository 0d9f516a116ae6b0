//! Who may become a member, and what of one may change.

use crate::{
    backup::ARCHIVER_PREFIX,
    command::{Refusal, Rejected, refused, refused_as, stale},
    member::{Member, MemberKind},
    record::Record,
};

impl Record {
    /// A new member, or what has changed of a known one.
    pub(crate) fn put_member(
        &mut self,
        at: u64,
        member: &Member,
        token_hash: &Option<String>,
    ) -> Result<Option<(String, String)>, Rejected> {
        if member.paths.is_empty() {
            return Err(refused("a member needs at least one address"));
        }
        let known = self.members.get(&member.name);
        if known.is_none() && member.name.as_str().starts_with(ARCHIVER_PREFIX) {
            return Err(refused(format!(
                "no member's name begins with `{ARCHIVER_PREFIX}`: those are the replication slots of repositories"
            )));
        }
        if let Some(hash) = token_hash {
            let token = self.tokens.iter_mut().find(|t| t.hash == *hash).ok_or_else(|| {
                refused_as(Refusal::TokenUnknown, "this join token is unknown or has expired")
            })?;
            if let Some(by) = &token.used_by {
                return Err(refused_as(
                    Refusal::TokenUsed,
                    format!("this join token was used already, by {by}"),
                ));
            }
            if token.expires_unix_ms <= at {
                return Err(refused_as(Refusal::TokenUnknown, "this join token has expired"));
            }
            if known.is_some() {
                return Err(refused_as(
                    Refusal::MemberExists,
                    format!(
                        "there is a member `{}` already; remove it first, or choose another name",
                        member.name
                    ),
                ));
            }
            token.used_by = Some(member.name.clone());
        }
        let taken = self.members.values().find(|m| m.node == member.node && m.name != member.name);
        if taken.is_some() || (known.is_none() && member.node <= self.last_node) {
            return Err(stale(format!("Raft node {} is taken already", member.node)));
        }
        if known.is_some_and(|k| k.kind != member.kind) {
            return Err(refused(format!(
                "{} cannot change between data member and witness",
                member.name
            )));
        }
        let text = match known {
            None => {
                let kind = if member.kind == MemberKind::Witness { "witness" } else { "member" };
                format!("{kind} {} joined", member.name)
            }
            Some(_) => format!("member {} changed", member.name),
        };
        self.last_node = self.last_node.max(member.node);
        self.members.insert(member.name.clone(), member.clone());
        Ok(Some(("member".into(), text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::MemberId,
        member::{Path, Ports},
    };

    #[test]
    fn the_names_of_archivers_are_nobodys() {
        let mut member = Member {
            name: MemberId::new("archive-main").unwrap(),
            node: 1,
            kind: MemberKind::Data,
            paths: vec![Path { host: "127.0.0.1".into() }],
            ports: Ports::default(),
            zone: None,
            tags: Default::default(),
            own_certificate: false,
        };
        let mut record = Record::default();
        let error = record.put_member(1, &member, &None).unwrap_err().to_string();
        assert!(error.contains("replication slots of repositories"), "{error}");
        member.name = MemberId::new("archives").unwrap();
        record.put_member(1, &member, &None).unwrap();
    }
}
