"""The command line: one file a verb or a group of verbs, nothing imported before its verb is asked for."""
