"""Models on a hub of models: what they are called there, their files, and how those come here."""
