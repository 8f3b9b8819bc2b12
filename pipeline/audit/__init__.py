"""How good the labels of a run are, by people who judge a random sample of them.

bounds        shares and means with confidence bounds: pure maths
sampling      a stratified random sample of the masks of a run, in one pass in bounded memory
plans         the plan of an audit: what was drawn, how, and of what; a file that the certificate goes by
packages      the sample for people: Label Studio tasks, and pictures with a page and a table to answer without
verdicts      what they answered
certificates  plan and answers -> figures
page          the certificate as a page to sign
"""
