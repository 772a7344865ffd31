-- What the account's client speaks, where that is not the original's protocol: how chats and replies are put for it.

ALTER TABLE User ADD COLUMN dialect TEXT;
