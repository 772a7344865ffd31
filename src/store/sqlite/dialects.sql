-- What the account's client last spoke, as in the MySQL database; NULL where that is the protocol itself, or is not
-- known.

ALTER TABLE User ADD COLUMN dialect TEXT;
