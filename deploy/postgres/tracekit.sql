-- Run by the image, as its superuser, when the volume is empty; and by you, when the password has changed. tracekit is no
-- superuser: it owns its database, and may make the role that reads it for Grafana.
\set password `cat /run/secrets/tracekit_db_password`
SELECT 'CREATE ROLE tracekit LOGIN CREATEROLE' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tracekit') \gexec
ALTER ROLE tracekit PASSWORD :'password';
SELECT 'CREATE DATABASE tracekit OWNER tracekit' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'tracekit') \gexec
