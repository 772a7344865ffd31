//! Everything the client says of itself, in both languages side by side.
//!
//! What scripts look for stays the same in both: the shape of a chat, `userid is N`,
//! `invalid input command!`.

use clap::ValueEnum;
use rustls::{CertificateError, Error as TlsError};

use crate::trust::TlsSetupError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lang {
    En,
    Zh,
}

impl Lang {
    /// The language of the locale: the first of LC_ALL, LC_MESSAGES and LANG that is set decides.
    pub fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Lang {
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(variable).find(|value| !value.is_empty());
        if locale.is_some_and(|locale| locale.starts_with("zh")) { Lang::Zh } else { Lang::En }
    }
}

/// One thing to say.
#[derive(Debug, Clone, Copy)]
pub enum Text<'a> {
    Menu,
    AskChoice,
    AskUserId,
    AskLoginPassword,
    AskUserName,
    AskNewPassword,
    InvalidChoice,
    UnknownCommand,
    CommandUsage { usage: &'a str },
    Help,
    CurrentUser { id: i64, name: &'a str },
    LoginHead,
    FriendsHead,
    GroupsHead,
    Foot,
    NoFriends,
    NoGroups,
    Registered { name: &'a str, id: i64 },
    NameTaken { name: &'a str },
    LoggedOut,
    Delivered { to: i64 },
    Stored { to: i64 },
    GroupDelivered { group: i64, delivered: i64, stored: i64, failed: i64 },
    FriendAdded { id: i64 },
    GroupCreated { name: &'a str, id: i64 },
    GroupJoined { id: i64 },
    Done { what: &'a str },
    Unconfirmed { what: &'a str },
    NoSuchRequest { what: &'a str },
    NotInDialect { object: &'a str },
    Refused { why: &'a str, what: &'a str },
    RefusedFor { errno: i64 },
    RetryAfter { seconds: i64 },
    ServerSays { why: &'a str },
    NoAnswerYet { what: &'a str },
    NotConnected { what: &'a str },
    NotKnownDelivered { what: &'a str },
    NotKnownDone { what: &'a str },
    ConnectionLost { why: &'a str },
    Reconnected,
    LoggedInAgain { name: &'a str },
    LoginRetried { why: &'a str },
    LoginLost { why: &'a str },
    StatusConnected { server: &'a str },
    StatusDisconnected { server: &'a str },
    ServerClosed,
    ServerSilent,
    ClosedAtOnce,
    NotAChatServer,
    SpeaksTls,
    SpeaksNoTls,
    UnknownIssuer,
    WrongName,
    NotValidNow,
    CaAsServer,
    NoRoots,
    CannotRead { file: &'a str, why: &'a str },
    NoCertificate { file: &'a str },
    BadName { name: &'a str },
    CannotConnect { server: &'a str, why: &'a str },
}

impl Text<'_> {
    /// The lines of the text. Only what the client says by itself has several: what was received is
    /// never split into lines.
    pub fn lines(self, lang: Lang) -> Vec<String> {
        let text = self.render(lang);
        match self {
            Text::Menu | Text::Help => text.split('\n').map(str::to_owned).collect(),
            _ => vec![text],
        }
    }

    /// The text; several lines are separated by LF.
    pub fn render(self, lang: Lang) -> String {
        /// Both languages of one line of the table.
        macro_rules! say {
            ($en:literal, $zh:literal) => {
                match lang {
                    Lang::En => format!($en),
                    Lang::Zh => format!($zh),
                }
            };
        }
        match self {
            Text::Menu => say!(
                "========================\n1. login\n2. register\n3. quit\n========================",
                "========================\n1. 登录 login\n2. 注册 register\n3. 退出 quit\n========================"
            ),
            Text::AskChoice => say!("choice:", "请选择:"),
            Text::AskUserId => say!("userid:", "用户 id:"),
            Text::AskLoginPassword => say!("user password:", "密码:"),
            Text::AskUserName => say!("username:", "用户名:"),
            Text::AskNewPassword => say!("userpassword:", "设置密码:"),
            Text::InvalidChoice => say!("invalid input!", "invalid input! 输入无效！"),
            Text::UnknownCommand => {
                say!("invalid input command!", "invalid input command! 无效的命令，输入 help 查看帮助")
            }
            Text::CommandUsage { usage } => {
                say!("invalid input command! the form is {usage}", "invalid input command! 正确的格式是 {usage}")
            }
            Text::Help => say!(
                "help                          this list
chat:ID:TEXT                  send a message to a user
addfriend:ID                  add a friend
creategroup:NAME:DESCRIPTION  create a group
addgroup:GROUPID              join a group
groupchat:GROUPID:TEXT        send a message to a group
friends                       show your friends
groups                        show your groups and their members
whoami                        show who you are
status                        show the connection
loginout                      log out, back to the menu
quit                          log out and leave",
                "help                          显示所有支持的命令
chat:ID:TEXT                  一对一聊天
addfriend:ID                  添加好友
creategroup:NAME:DESCRIPTION  创建群组
addgroup:GROUPID              加入群组
groupchat:GROUPID:TEXT        群聊
friends                       显示好友列表
groups                        显示群组和成员
whoami                        显示当前用户
status                        显示连接状态
loginout                      注销，返回菜单
quit                          注销并退出"
            ),
            Text::CurrentUser { id, name } => {
                say!("current login user => id:{id} name:{name}", "当前登录用户 => id:{id} name:{name}")
            }
            Text::LoginHead => say!(
                "======================login user======================",
                "======================登录用户========================"
            ),
            Text::FriendsHead => say!(
                "----------------------friend list---------------------",
                "----------------------好友列表------------------------"
            ),
            Text::GroupsHead => say!(
                "----------------------group list----------------------",
                "----------------------群组列表------------------------"
            ),
            Text::Foot => "======================================================".into(),
            Text::NoFriends => say!("no friends yet", "还没有好友"),
            Text::NoGroups => say!("no groups yet", "还没有群组"),
            Text::Registered { name, id } => say!(
                "{name} register success, userid is {id}, do not forget it!",
                "{name} 注册成功，userid is {id}，请牢记！"
            ),
            Text::NameTaken { name } => {
                say!("{name} is already exist, register error!", "{name} 已存在，注册失败！")
            }
            Text::LoggedOut => say!("logged out", "已注销"),
            Text::Delivered { to } => say!("delivered to {to}", "已送达 {to}"),
            Text::Stored { to } => {
                say!("stored for {to}, delivered at the next login", "已为 {to} 保存，对方登录后送达")
            }
            Text::GroupDelivered { group, delivered, stored, failed: 0 } => say!(
                "group {group}: delivered to {delivered}, stored for {stored}",
                "群 {group}：送达 {delivered} 人，保存 {stored} 人"
            ),
            Text::GroupDelivered { group, delivered, stored, failed } => say!(
                "group {group}: delivered to {delivered}, stored for {stored}, failed for {failed}",
                "群 {group}：送达 {delivered} 人，保存 {stored} 人，失败 {failed} 人"
            ),
            Text::FriendAdded { id } => say!("{id} is your friend now", "已添加好友 {id}"),
            Text::GroupCreated { name, id } => {
                say!("group {name} created, groupid is {id}", "群组 {name} 创建成功，groupid is {id}")
            }
            Text::GroupJoined { id } => say!("you joined group {id}", "已加入群组 {id}"),
            Text::Done { what } => say!("done: {what}", "已完成：{what}"),
            Text::NoSuchRequest { what } => {
                say!("not sent, this dialect has no such request: {what}", "没有发送，此方言没有这种请求：{what}")
            }
            Text::NotInDialect { object } => {
                say!(
                    "the server sent what this dialect does not have: {object}",
                    "服务器发来此方言没有的消息：{object}"
                )
            }
            Text::Unconfirmed { what } => {
                say!("sent, this server sends no acks: {what}", "已发送，此服务器不确认结果：{what}")
            }
            Text::Refused { why, what } => say!("refused: {why} ({what})", "被拒绝：{why}（{what}）"),
            Text::RefusedFor { errno } => say!("refused, errno {errno}", "被拒绝，errno {errno}"),
            Text::RetryAfter { seconds } => say!("try again in {seconds} s", "请在 {seconds} 秒后重试"),
            Text::ServerSays { why } => say!("server: {why}", "服务器：{why}"),
            Text::NoAnswerYet { what } => {
                say!("no answer yet, not known to be done: {what}", "尚无回复，不确定是否完成：{what}")
            }
            Text::NotConnected { what } => say!("not connected, not sent: {what}", "未连接，没有发送：{what}"),
            Text::NotKnownDelivered { what } => {
                say!("not known to be delivered, and not sent again: {what}", "不确定是否送达，不会重发：{what}")
            }
            Text::NotKnownDone { what } => {
                say!("not known to be done, and not sent again: {what}", "不确定是否完成，不会重发：{what}")
            }
            Text::ConnectionLost { why } => {
                say!("connection lost ({why}), reconnecting", "连接已断开（{why}），正在重连")
            }
            Text::Reconnected => say!("connected again", "已重新连接"),
            Text::LoggedInAgain { name } => say!("logged in again as {name}", "已重新登录：{name}"),
            Text::LoginRetried { why } => say!("cannot log in yet: {why}", "暂时无法登录：{why}"),
            Text::LoginLost { why } => say!("you are logged out: {why}", "登录已失效：{why}"),
            Text::StatusConnected { server } => say!("connected to {server}", "已连接 {server}"),
            Text::StatusDisconnected { server } => {
                say!("not connected to {server}, reconnecting", "未连接 {server}，正在重连")
            }
            Text::ServerClosed => say!("the server closed the connection", "服务器关闭了连接"),
            Text::ServerSilent => say!("the server does not answer", "服务器没有应答"),
            Text::ClosedAtOnce => say!(
                "it closed the connection at once: it is a proxy without a server behind it, or uses TLS (then use --tls)",
                "对方立即关闭了连接：可能是代理后面没有可用的服务器，或者使用 TLS（请加 --tls）"
            ),
            Text::NotAChatServer => say!("what answers there is not a chat server", "对方不是聊天服务器"),
            Text::SpeaksTls => say!("it uses TLS: use --tls", "对方使用 TLS：请加 --tls"),
            Text::SpeaksNoTls => say!(
                "that port has no TLS: leave out --tls, or name the TLS port",
                "对方在该端口不使用 TLS：请去掉 --tls，或换用 TLS 端口"
            ),
            Text::UnknownIssuer => say!(
                "its certificate is not signed by a trusted authority: if you trust it, use --tls-ca FILE",
                "其证书的签发者不受信任：如果你信任它，请用 --tls-ca FILE 指定"
            ),
            Text::WrongName => say!(
                "its certificate is for another name: --tls-name NAME sets the name to expect",
                "其证书属于另一个名称：请用 --tls-name NAME 指定"
            ),
            Text::NotValidNow => say!(
                "its certificate is not valid at this time: it must be renewed, or a clock is wrong",
                "其证书当前不在有效期内：需要更新证书，或校正时钟"
            ),
            Text::CaAsServer => say!(
                "its certificate is an authority's (CA:TRUE), not a server's: make one with CA:FALSE",
                "其证书是 CA 证书（CA:TRUE），不能用于服务器：请用 CA:FALSE 重新生成"
            ),
            Text::NoRoots => say!(
                "this system has no root certificates: install ca-certificates, or use --tls-ca FILE",
                "本系统没有受信任的根证书：请安装 ca-certificates，或使用 --tls-ca FILE"
            ),
            Text::CannotRead { file, why } => say!("cannot read {file}: {why}", "无法读取 {file}：{why}"),
            Text::NoCertificate { file } => {
                say!("{file} holds no certificate in PEM form", "{file} 中没有 PEM 格式的证书")
            }
            Text::BadName { name } => {
                say!("{name} is neither a host's name nor an IP address", "{name} 既不是主机名也不是 IP 地址")
            }
            Text::CannotConnect { server, why } => {
                say!("cannot connect to {server}: {why}", "无法连接 {server}：{why}")
            }
        }
    }
}

/// What went wrong with TLS, and what to do about it.
pub fn tls_text(error: &TlsError, lang: Lang) -> String {
    let text = match error {
        TlsError::InvalidMessage(_) => Text::SpeaksNoTls,
        TlsError::InvalidCertificate(error) => match error {
            // The second: another certificate of the same name is trusted, as after a change of certificates.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Text::UnknownIssuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Text::WrongName,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Text::NotValidNow,
            // It comes from below rustls, which has no word of its own for it.
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => Text::CaAsServer,
            error => return error.to_string(),
        },
        error => return error.to_string(),
    };
    text.render(lang)
}

pub fn tls_setup_text(error: &TlsSetupError, lang: Lang) -> String {
    match error {
        TlsSetupError::Unreadable(file, why) => {
            Text::CannotRead { file: &file.to_string_lossy(), why: &why.to_string() }.render(lang)
        }
        TlsSetupError::NoCertificate(file) => Text::NoCertificate { file: &file.to_string_lossy() }.render(lang),
        TlsSetupError::NoRoots => Text::NoRoots.render(lang),
        TlsSetupError::BadName(name) => Text::BadName { name }.render(lang),
        TlsSetupError::Rustls(error) => tls_text(error, lang),
    }
}

/// The command line's help; clap's own words stay as they are.
pub fn help_in_chinese(command: clap::Command) -> clap::Command {
    [
        ("ip", "服务器的 IP 地址或主机名"),
        ("port", "服务器的端口"),
        ("lang", "界面语言，默认由系统区域设置决定"),
        ("tls", "使用 TLS，信任系统所信任的证书"),
        ("tls_ca", "同时信任该 PEM 文件中的证书"),
        ("tls_name", "服务器证书应属于的名称，与上面的地址不同时使用"),
        ("dialect", "按此方言与其他服务器通信：名称，或描述该方言的文件；list 列出所有名称"),
    ]
    .into_iter()
    .fold(command.about("聊天服务器的客户端"), |command, (argument, help)| {
        command.mut_arg(argument, |argument| argument.help(help))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_decides_the_language() {
        let lang = |set: &[(&str, &str)]| {
            Lang::of_locale(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
        };
        assert_eq!(lang(&[]), Lang::En);
        assert_eq!(lang(&[("LANG", "zh_CN.UTF-8")]), Lang::Zh);
        assert_eq!(lang(&[("LC_ALL", "C"), ("LANG", "zh_CN.UTF-8")]), Lang::En);
        assert_eq!(lang(&[("LC_ALL", ""), ("LC_MESSAGES", "zh_TW"), ("LANG", "en_US")]), Lang::Zh);
    }

    #[test]
    fn what_scripts_look_for_is_the_same_in_both_languages() {
        for lang in [Lang::En, Lang::Zh] {
            assert!(Text::Registered { name: "li", id: 7 }.render(lang).contains("userid is 7"));
            assert!(Text::GroupCreated { name: "Rust", id: 7 }.render(lang).contains("groupid is 7"));
            assert!(Text::UnknownCommand.render(lang).starts_with("invalid input command!"));
        }
    }
}
