//! Scripts of protocol messages, made from a seed. The same seed makes the same script.

#[path = "script_texts.rs"]
mod texts;

use sempre_wire::pg::write;
use texts::{EXTENDED, SIMPLE};

/// What has to be there before a script plays. It can run again at any time.
pub const PREPARE: &str =
    "truncate t, c; insert into t select g, 'row ' || g from generate_series(1, 9) g";
/// The tables, made once: their numbers show in what a server says of columns.
pub const TABLES: &str =
    "create table t (a int primary key, b text); create table c (a int, b text)";

/// Messages that are sent at once.
pub struct Step {
    pub bytes: Vec<u8>,
    /// How many ReadyForQuery answer them.
    pub ready: usize,
    /// In words, for the reader of a failure.
    pub says: Vec<String>,
}

/// What scripts may do that a shared connection cannot hide: giving a name away twice (also behind
/// a DISCARD ALL in the same cycle), and using a statement inside a failed block which that
/// connection has not seen (it cannot be prepared there).
#[derive(Clone, Copy)]
pub struct Allows {
    pub same_name: bool,
    pub reuse: bool,
    pub blocks: bool,
}

/// See the module.
pub struct Script {
    pub steps: Vec<Step>,
    /// Bytes that are written at once.
    pub chunk: usize,
}

/// Steele's and Vigna's splitmix64.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const STATEMENTS: &[&str] = &["", "", "", "s1", "s2", "s3"];
const PORTALS: &[&str] = &["", "", "", "p1", "p2"];

fn leaves_block(text: &str) -> bool {
    ["begin", "start"].iter().any(|word| text.starts_with(word)) || text.contains("chain")
}

/// What is written into one step.
struct Writer<'a> {
    random: &'a mut Random,
    step: Step,
    /// Which text a statement's name stands for, as far as it is known.
    texts: &'a mut Vec<(&'static str, &'static str, usize)>,
    allows: Allows,
}

impl Script {
    pub fn new(seed: u64, allows: Allows) -> Self {
        let mut random = Random(seed);
        let mut texts = Vec::new();
        let steps = 2 + random.below(8);
        let mut made = Vec::new();
        for number in 0..=steps {
            let step = Step { bytes: Vec::new(), ready: 0, says: Vec::new() };
            let mut writer = Writer { random: &mut random, step, texts: &mut texts, allows };
            for _ in 0..=writer.random.one(&[0, 0, 0, 1, 3, 12]) {
                writer.exchange();
            }
            if number == steps {
                writer.last_words();
            }
            made.push(writer.step);
        }
        let chunk = random.one(&[usize::MAX, usize::MAX, 8192, 1000, 37]);
        Self { steps: made, chunk }
    }
}

impl Writer<'_> {
    fn say(&mut self, words: impl Into<String>) -> &mut Vec<u8> {
        self.step.says.push(words.into());
        &mut self.step.bytes
    }

    /// Something that ends with ReadyForQuery.
    fn exchange(&mut self) {
        match self.random.below(100) {
            0..50 => self.simple(),
            50..85 => self.extended(),
            85..93 => self.copy_in(),
            93..96 => self.function(),
            96..98 => {
                self.step.ready += 1;
                write::sync(self.say("Sync"));
            }
            _ => write::flush(self.say("Flush")),
        }
    }

    fn simple(&mut self) {
        let mut text = self.random.one(SIMPLE).to_owned();
        while !self.allows.blocks && leaves_block(&text) {
            text = self.random.one(SIMPLE).to_owned();
        }
        if self.random.chance(4) {
            // Longer than what is seen at once.
            text.insert_str(0, &format!("/*{}*/ ", "-".repeat(9_990 + self.random.below(20_000))));
        }
        self.query(&text);
    }

    fn query(&mut self, text: &str) {
        self.step.ready += 1;
        let shown = text.rsplit("--*/").next().unwrap_or_default().to_owned();
        write::query(self.say(format!("Query {shown}")), text.as_bytes());
    }

    fn extended(&mut self) {
        for _ in 0..=self.random.one(&[0, 0, 0, 1, 2, 5]) {
            self.run_extended();
        }
        self.step.ready += 1;
        write::sync(self.say("Sync"));
    }

    /// The usual order, with something left out or put in now and then.
    fn run_extended(&mut self) {
        let statement = self.random.one(STATEMENTS);
        let portal = self.random.one(PORTALS);
        let known = self.texts.iter().rfind(|(name, ..)| *name == statement).copied();
        let reuse = known.is_some() && self.allows.reuse && self.random.chance(50);
        let (text, parameters) = match known {
            Some((_, text, parameters)) if reuse => (text, parameters),
            _ => loop {
                let one = self.random.one(EXTENDED);
                let in_block = one.0 == "begin" && !self.allows.blocks;
                let forgets = one.0.ends_with(" all") && !self.allows.same_name;
                if !in_block && !forgets {
                    break one;
                }
            },
        };
        if !reuse {
            if (self.random.chance(60) || !self.allows.same_name) && !statement.is_empty() {
                let out = self.say(format!("Close statement {statement:?}"));
                write::close_statement(out, statement.as_bytes());
            }
            let types: &[u32] = if self.random.chance(10) && parameters == 1 { &[23] } else { &[] };
            let out = self.say(format!("Parse {statement:?} {text}"));
            write::parse(out, statement.as_bytes(), text.as_bytes(), types);
            self.texts.push((statement, text, parameters));
        }
        if self.random.chance(40) {
            let out = self.say("Describe statement");
            write::describe_statement(out, statement.as_bytes());
        }
        self.noise();
        if self.random.chance(95) {
            self.bind(portal, statement, parameters);
        }
        if self.random.chance(50) {
            write::describe_portal(self.say("Describe portal"), portal.as_bytes());
        }
        let limits = self.random.one(&[&[0][..], &[0], &[0], &[1, 2], &[2, 0], &[5], &[]]);
        for limit in limits {
            let out = self.say(format!("Execute {portal:?} {limit}"));
            write::execute(out, portal.as_bytes(), *limit);
            self.noise();
        }
        if self.random.chance(20) {
            write::close_portal(self.say("Close portal"), portal.as_bytes());
        }
        if self.random.chance(10) {
            let out = self.say(format!("Close statement {statement:?}"));
            write::close_statement(out, statement.as_bytes());
        }
    }

    fn noise(&mut self) {
        if self.random.chance(10) {
            write::flush(self.say("Flush"));
        }
    }

    /// Parameters and results in text and in binary.
    fn bind(&mut self, portal: &str, statement: &str, parameters: usize) {
        let formats: Vec<u16> = match self.random.below(4) {
            0 => vec![],
            1 => vec![0],
            2 => vec![1],
            _ => (0..parameters).map(|_| self.random.below(2) as u16).collect(),
        };
        let results = self.random.one(&[&[][..], &[], &[0_u16], &[1], &[0, 1], &[7]]);
        let values: Vec<Option<Vec<u8>>> = (0..parameters)
            .map(|at| {
                let binary = match formats.len() {
                    0 => false,
                    1 => formats[0] == 1,
                    _ => formats[at] == 1,
                };
                match (self.random.below(12), binary) {
                    (0, _) => None,
                    (1, _) => Some(vec![b'8'; 12_000]),
                    (2, _) => Some(b"not a number".to_vec()),
                    (_, true) => Some((self.random.below(9) as u32).to_be_bytes().to_vec()),
                    (_, false) => Some(self.random.below(9).to_string().into_bytes()),
                }
            })
            .collect();
        let lengths: Vec<_> = values.iter().map(|value| value.as_ref().map(Vec::len)).collect();
        let out =
            self.say(format!("Bind {portal:?} {statement:?} {formats:?} {lengths:?} {results:?}"));
        write::message(out, b'B', |out| {
            let put = |out: &mut Vec<u8>, count: usize| out.extend((count as u16).to_be_bytes());
            out.extend_from_slice(format!("{portal}\0{statement}\0").as_bytes());
            put(out, formats.len());
            formats.iter().for_each(|format| put(out, usize::from(*format)));
            put(out, values.len());
            for value in &values {
                let length = value.as_ref().map_or(-1, |value| value.len() as i32);
                out.extend(length.to_be_bytes());
                out.extend(value.iter().flatten());
            }
            put(out, results.len());
            results.iter().for_each(|format| put(out, usize::from(*format)));
        });
    }

    fn copy_in(&mut self) {
        let text = self.random.one(&[
            "copy c from stdin",
            "copy c from stdin (format csv)",
            "copy c from stdin; select 1",
            "copy never from stdin",
        ]);
        let extended = self.random.chance(40);
        if extended {
            write::parse(self.say(format!("Parse {text}")), b"", text.as_bytes(), &[]);
            write::bind(self.say("Bind"), b"", b"", &[]);
            write::execute(self.say("Execute"), b"", 0);
        } else {
            self.query(text);
        }
        self.copy_data();
        match self.random.chance(80) {
            true => write::copy_done(self.say("CopyDone")),
            false => write::copy_fail(self.say("CopyFail"), b"on a whim"),
        }
        if extended {
            self.step.ready += 1;
            write::sync(self.say("Sync"));
        }
    }

    fn copy_data(&mut self) {
        for _ in 0..self.random.below(5) {
            let data = match self.random.below(10) {
                0 => b"no number\tx\n".to_vec(),
                1 => format!("1\t{}\n", "l".repeat(15_000)).into_bytes(),
                // A line in two messages.
                2 => {
                    write::copy_data(self.say("CopyData"), b"4\tha");
                    b"lf\n".to_vec()
                }
                3 => Vec::new(),
                _ => b"1\tone\n2\t\\N\n".to_vec(),
            };
            write::copy_data(self.say(format!("CopyData {}", data.len())), &data);
            self.noise();
        }
    }

    /// int4abs, or a function that there is not.
    fn function(&mut self) {
        let number: u32 = self.random.one(&[1397, 1397, 0]);
        self.step.ready += 1;
        write::message(self.say(format!("FunctionCall {number}")), b'F', |out| {
            out.extend(number.to_be_bytes());
            out.extend([0, 1, 0, 1, 0, 1, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xfe, 0, 1]);
        });
    }

    /// The end of the script may leave things open, and break rules.
    fn last_words(&mut self) {
        match self.random.below(12) {
            0 => {
                self.run_extended();
                self.query("select 'without a Sync'");
            }
            1 => self.run_extended(),
            2 => {
                self.query("copy c from stdin");
                self.copy_data();
            }
            3 => {
                self.query("copy c from stdin");
                self.copy_data();
                self.query("select 'inside a COPY'");
            }
            4 => {
                write::parse(self.say("Parse COPY"), b"", b"copy c from stdin", &[]);
                write::bind(self.say("Bind"), b"", b"", &[]);
                write::execute(self.say("Execute"), b"", 0);
                write::sync(self.say("Sync, inside the COPY"));
                self.copy_data();
                write::copy_done(self.say("CopyDone"));
                write::sync(self.say("Sync"));
            }
            5 => write::message(self.say("no message"), b'!', |_| {}),
            6 => write::password(self.say("a password that nobody asked for"), b"x"),
            7 => write::message(self.say("an empty Bind"), b'B', |_| {}),
            8 => write::message(self.say("a Query without its end"), b'Q', |out| out.push(b'x')),
            9 => self.say("an impossible length").extend([b'Q', 0, 0, 0, 2]),
            _ => {}
        }
        write::terminate(self.say("Terminate"));
    }
}
