//! A warm connection becomes the session's own.

use super::{ADOPT_WITHIN, Made, Warm};
use crate::{
    Role,
    hold::{Hold, NotLed},
    proxy::{
        attach::until_cut,
        carry::Ahead,
        link::Link,
        pool::{goodbye, is_silent},
        session::Session,
        share::write_name,
        talk::Talk,
    },
    stats::count,
};
use sempre_wire::pg::{Side, write};
use tokio::time;

impl Session<'_> {
    /// Its own warm connection, if there is one.
    pub(in crate::proxy) fn take_warm(&mut self) -> Option<Made> {
        match self.warm.take().map(|warm| *warm) {
            Some(Warm::Made(made)) => Some(*made),
            // Not begun, or not done in all that time.
            Some(Warm::Making(_)) | None => None,
        }
    }

    /// Waits until the warm connection leads to the primary, and brings it to the session's state.
    /// None: it is of no use, a new one is needed.
    pub(in crate::proxy) async fn adopt(
        &mut self,
        hold: &mut Hold<'_>,
        made: Made,
    ) -> Result<Option<Link>, NotLed> {
        let Made { mut link, ahead, .. } = made;
        let led = hold.lead_warm(self.client.tcp(), &link.ticket, &link.member).await?;
        let fits = link.epoch == self.pool.pool.epoch() && is_silent(&mut link);
        let Some(candidate) = led.filter(|_| fits) else {
            goodbye(link);
            return Ok(None);
        };
        (link.role, link.generation) = (Role::Primary, candidate.generation);
        let cut = link.ticket.cut.clone();
        let catching_up = async {
            let whole = !self.lends();
            let same = match whole {
                true => ahead.is_of(&self.carried),
                false => ahead.is_nothing(),
            };
            if !same {
                discard(&mut link).await?;
                self.restore(&mut link).await.ok()?;
            } else {
                self.make_up(&mut link, &ahead, whole).await?;
            }
            // What it says itself is the last word: it takes writes.
            (link.parameter(b"in_hot_standby") == Some(b"off")).then_some(())
        };
        let adopted = until_cut(&cut, time::timeout(ADOPT_WITHIN, catching_up)).await;
        if !matches!(adopted, Some(Ok(Some(())))) {
            tracing::debug!("a warm connection is of no use");
            goodbye(link);
            return Ok(None);
        }
        self.tell_parameters(&link);
        count(&self.proxy.shared.counters.warm_used);
        Ok(Some(link))
    }

    /// What could not be restored before, or is new, in one exchange.
    async fn make_up(&mut self, link: &mut Link, ahead: &Ahead, whole: bool) -> Option<()> {
        let mut out = Vec::new();
        let mut cycles = 0;
        let name = self.parameter(b"application_name").unwrap_or_default().to_vec();
        if link.parameter(b"application_name").unwrap_or_default() != name {
            write_name(&mut out, &name);
            cycles += 1;
        }
        let mut needed = cycles;
        if whole {
            let statements = (!self.renames()).then(|| self.tracker.statements());
            let written = self.carried.write_rest(ahead, statements, &mut out);
            needed += written.needed;
            cycles += written.needed + written.more;
        }
        if cycles == 0 {
            // Its answer says whether it is still in recovery.
            write::sync(&mut out);
            cycles = 1;
        }
        let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
        let answers = talk.ask(&out, cycles).await.ok()?;
        link.kept = talk.rest();
        for (name, value) in answers.parameters {
            link.reported(&name, &value);
        }
        self.to_client.extend_from_slice(&answers.notifications);
        (!answers.errors.iter().any(|(cycle, ..)| *cycle < needed)).then_some(())
    }
}

/// The session is not what it was when the connection was made: it begins from nothing.
async fn discard(link: &mut Link) -> Option<()> {
    let mut out = Vec::new();
    write::query(&mut out, b"DISCARD ALL");
    let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
    let answers = talk.ask(&out, 1).await.ok()?;
    link.kept = talk.rest();
    for (name, value) in answers.parameters {
        link.reported(&name, &value);
    }
    link.forget_statements();
    answers.errors.is_empty().then_some(())
}
