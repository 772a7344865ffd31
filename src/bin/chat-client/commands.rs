//! What a user can type after logging in.

use crate::text::Text;

/// One command. The spellings are the C++ client's, and a few more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Help,
    Chat { to: i64, text: String },
    AddFriend(i64),
    CreateGroup { name: String, description: String },
    JoinGroup(i64),
    GroupChat { group: i64, text: String },
    Friends,
    Groups,
    WhoAmI,
    Status,
    Logout,
    Quit,
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    Unknown,
    /// The command exists; this is how it is written.
    Usage(&'static str),
}

impl Mistake {
    pub fn text(self) -> Text<'static> {
        match self {
            Mistake::Unknown => Text::UnknownCommand,
            Mistake::Usage(usage) => Text::CommandUsage { usage },
        }
    }
}

/// Reads one line. A message's text is everything behind its second colon, verbatim. A Chinese input
/// method writes colons, digits and blanks in full width; before the text they count as the others.
pub fn parse(line: &str) -> Result<Command, Mistake> {
    let (verb, rest) = split(line).unwrap_or((line, ""));
    Ok(match narrow(verb).trim() {
        "help" => Command::Help,
        "chat" => {
            let (to, text) = addressed(rest).ok_or(Mistake::Usage("chat:ID:TEXT"))?;
            Command::Chat { to, text }
        }
        "groupchat" => {
            let (group, text) = addressed(rest).ok_or(Mistake::Usage("groupchat:GROUPID:TEXT"))?;
            Command::GroupChat { group, text }
        }
        "addfriend" => Command::AddFriend(number(rest).ok_or(Mistake::Usage("addfriend:ID"))?),
        "addgroup" => Command::JoinGroup(number(rest).ok_or(Mistake::Usage("addgroup:GROUPID"))?),
        "creategroup" => {
            let (name, description) = split(rest).ok_or(Mistake::Usage("creategroup:NAME:DESCRIPTION"))?;
            Command::CreateGroup { name: name.into(), description: description.into() }
        }
        "friends" => Command::Friends,
        "groups" => Command::Groups,
        "whoami" => Command::WhoAmI,
        "status" => Command::Status,
        "loginout" => Command::Logout,
        "quit" => Command::Quit,
        _ => return Err(Mistake::Unknown),
    })
}

/// What stands before the first colon, and behind it. Besides the full-width one, input methods
/// offer its small and its vertical form, and the sign of a ratio.
fn split(text: &str) -> Option<(&str, &str)> {
    text.split_once([':', '：', '﹕', '︓', '∶'])
}

/// `ID:TEXT`.
fn addressed(rest: &str) -> Option<(i64, String)> {
    let (id, text) = split(rest)?;
    Some((number(id)?, text.into()))
}

/// A number, in ASCII's digits or in full-width ones.
pub fn number(text: &str) -> Option<i64> {
    narrow(text).trim().parse().ok()
}

/// The text with the full-width forms of ASCII as ASCII.
fn narrow(text: &str) -> String {
    // They stand in ASCII's order, from `！` to `～`.
    let ascii = |c: char| char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c);
    text.chars().map(|c| if ('！'..='～').contains(&c) { ascii(c) } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_the_original_are_read() {
        assert_eq!(parse("help"), Ok(Command::Help));
        assert_eq!(parse("help:"), Ok(Command::Help));
        assert_eq!(parse("chat:2:hi"), Ok(Command::Chat { to: 2, text: "hi".into() }));
        assert_eq!(parse("addfriend:7"), Ok(Command::AddFriend(7)));
        let group = Command::CreateGroup { name: "Rust".into(), description: "all of it".into() };
        assert_eq!(parse("creategroup:Rust:all of it"), Ok(group));
        assert_eq!(parse("addgroup: 3 "), Ok(Command::JoinGroup(3)));
        assert_eq!(parse("groupchat:3:hi"), Ok(Command::GroupChat { group: 3, text: "hi".into() }));
        assert_eq!(parse("loginout"), Ok(Command::Logout));
        assert_eq!(parse("loginout:"), Ok(Command::Logout));
    }

    #[test]
    fn a_text_keeps_its_colons_and_blanks() {
        assert_eq!(parse("chat:2: a:b :"), Ok(Command::Chat { to: 2, text: " a:b :".into() }));
    }

    #[test]
    fn what_a_chinese_input_method_writes_is_read_and_a_text_is_left_as_it_is() {
        let chat = |text: &str| Ok(Command::Chat { to: 2, text: text.into() });
        assert_eq!(parse("chat：2：text"), chat("text"));
        assert_eq!(parse("chat：2：a：b:c"), chat("a：b:c"));
        assert_eq!(parse("chat:2：a:b"), chat("a:b"));
        assert_eq!(parse("chat：2:：a"), chat("：a"));
        assert_eq!(parse("　chat　：　２　：　１２：３０"), chat("　１２：３０"));
        assert_eq!(parse("ｃｈａｔ﹕2∶hi"), chat("hi"));
        assert_eq!(parse("groupchat：１２：大家好"), Ok(Command::GroupChat { group: 12, text: "大家好".into() }));
        assert_eq!(parse("addfriend：７"), Ok(Command::AddFriend(7)));
        assert_eq!(parse("addgroup：3"), Ok(Command::JoinGroup(3)));
        let group = Command::CreateGroup { name: "数学".into(), description: "几何：代数".into() };
        assert_eq!(parse("creategroup：数学：几何：代数"), Ok(group));
        assert_eq!(parse("loginout："), Ok(Command::Logout));
        assert_eq!(parse("help："), Ok(Command::Help));
        assert_eq!(parse("chat：你：好"), Err(Mistake::Usage("chat:ID:TEXT")));
        assert_eq!(parse("chat：2"), Err(Mistake::Usage("chat:ID:TEXT")));
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        assert_eq!(parse("dance"), Err(Mistake::Unknown));
        assert_eq!(parse("Chat:2:hi"), Err(Mistake::Unknown));
        assert_eq!(parse("chat:2"), Err(Mistake::Usage("chat:ID:TEXT")));
        assert_eq!(parse("chat:you:hi"), Err(Mistake::Usage("chat:ID:TEXT")));
        assert_eq!(parse("addfriend"), Err(Mistake::Usage("addfriend:ID")));
        assert_eq!(parse("creategroup:Rust"), Err(Mistake::Usage("creategroup:NAME:DESCRIPTION")));
    }
}
