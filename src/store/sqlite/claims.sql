-- node and epoch are the claim by which this file's server has the user, as in the MySQL database; both are NULL
-- where nobody is online.

ALTER TABLE User ADD COLUMN node INTEGER;
ALTER TABLE User ADD COLUMN epoch INTEGER;
