# What lme4 finds in simulated experiments: coefficients, standard errors, variances, log-likelihood, by ML and REML.
#
#     python benchmarks/mixed_models.py --write FOLDER
#     Rscript benchmarks/lme4_reference.R FOLDER tests/reference/lme4.json
#
# Run once; tests read the JSON and never need R. It needs the packages lme4 and jsonlite. Every model is fitted by
# several optimizers with tight tolerances, and the one with the largest likelihood is kept, so that the values are
# those of the maximum and not of where one optimizer stopped. Letters are sorted as in the C locale, like Python's.

suppressPackageStartupMessages({library(lme4); library(jsonlite)})
invisible(Sys.setlocale("LC_COLLATE", "C"))
folder <- commandArgs(trailingOnly = TRUE)[1]
target <- commandArgs(trailingOnly = TRUE)[2]

controls <- list(
  lmerControl("bobyqa", optCtrl = list(rhoend = 1e-9, maxfun = 1e5), calc.derivs = FALSE, check.scaleX = "ignore"),
  lmerControl("nloptwrap", optCtrl = list(xtol_abs = 1e-10, ftol_abs = 1e-12, maxeval = 1e5), calc.derivs = FALSE,
              check.scaleX = "ignore"),
  lmerControl("Nelder_Mead", optCtrl = list(FtolAbs = 1e-12, XtolRel = 1e-12, maxfun = 1e5), calc.derivs = FALSE,
              check.scaleX = "ignore")
)

found <- function(formula, data, reml) {
  fits <- lapply(controls, function(control) {
    suppressMessages(suppressWarnings(lmer(as.formula(formula), data, REML = reml, control = control)))
  })
  best <- fits[[which.max(sapply(fits, logLik))]]
  variances <- as.data.frame(VarCorr(best))
  list(
    coef = as.list(fixef(best)),
    se = as.list(setNames(sqrt(diag(as.matrix(vcov(best)))), names(fixef(best)))),
    variances = variances[c("grp", "var1", "var2", "vcov")],
    loglik = as.numeric(logLik(best)),
    singular = isSingular(best),
    n = nobs(best)
  )
}

read <- function(name) {
  data <- read.csv(file.path(folder, paste0(name, ".csv")), check.names = FALSE)
  if ("first" %in% names(data)) data$first <- as.logical(data$first)
  data
}

# The names and sums of the columns that a formula stands for, and the effects of each grouping factor.
coded <- function(coding) {
  control <- lmerControl(check.nobs.vs.nRE = "ignore", check.nobs.vs.nlev = "ignore", check.scaleX = "ignore")
  parts <- suppressMessages(lFormula(as.formula(coding$formula), read(coding$design), control = control))
  c(coding, list(fixed = as.list(colSums(parts$X)), groups = I(names(parts$reTrms$cnms)),
                 effects = lapply(unname(parts$reTrms$cnms), I)))
}

asked <- fromJSON(file.path(folder, "designs.json"), simplifyVector = FALSE)
values <- lapply(names(asked$designs), function(name) {
  design <- asked$designs[[name]]
  data <- read(name)
  c(design, list(ml = found(design$formula, data, FALSE), reml = found(design$formula, data, TRUE)))
})
names(values) <- names(asked$designs)
versions <- list(R = as.character(getRversion()), lme4 = as.character(packageVersion("lme4")))
write_json(list(versions = versions, designs = values, codings = lapply(asked$codings, coded)), target,
           digits = NA, auto_unbox = TRUE, pretty = TRUE, na = "null")
